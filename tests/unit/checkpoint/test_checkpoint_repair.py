"""Repairs mend what they name, twice is once, and a crash leaves the old state or one that the next run completes."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.dying import Killed, count_writes

from sparkwright.checkpoint.checkpoint import JOURNAL, read_checkpoint
from sparkwright.checkpoint.dequantize import read_floats
from sparkwright.checkpoint.repair import RECEIPT, Actions, Repaired, repair_in_place, repair_into
from sparkwright.checkpoint.repair_files import SIDECAR
from sparkwright.checkpoint.verify import verify
from sparkwright.errors import ConfigurationError, InputUnreadableError, LockedError, UsageError
from sparkwright.files import exclusive_lock, sha256_file

if TYPE_CHECKING:
    from tests.unit.checkpoint.conftest import Model

Make = Callable[[str], "Model"]
INDEX = "model.safetensors.index.json"


def codes(root: Path) -> list[str]:
    return [one.rule.code for one in verify(root).findings]


def snapshot(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and ".sparkwright" not in path.relative_to(root).parts
    }


def without_input_scales(model: "Model") -> "Model":
    for name in [one for one in model.tensors if one.endswith((".input_scale", ".input_global_scale"))]:
        del model.tensors[name]
    return model


Place = Callable[[Path, Actions], Repaired]
PLACES: list[Place] = [
    repair_in_place,
    lambda root, actions: repair_into(root, root.with_name("mended"), actions),
]


@pytest.fixture(params=PLACES, ids=["in-place", "output"])
def repair(request: pytest.FixtureRequest) -> Place:
    return request.param  # type: ignore[no-any-return]


@pytest.mark.parametrize(("kind", "value"), [("modelopt", 0.5), ("packed", 2.0)])
def test_input_scales_are_added_beside_the_shards(
    make: Make, tmp_path: Path, repair: Place, kind: str, value: float
) -> None:
    root = without_input_scales(make(kind)).write(tmp_path / "model")
    assert codes(root) == ["input-scale-missing"]
    before = snapshot(root)
    done = repair(root, Actions(set_input_scale=0.5))
    assert set(done.written) == {SIDECAR, INDEX}
    assert "costs accuracy" in done.notices[0]
    assert codes(done.directory) == []
    after = snapshot(done.directory)
    assert {name: after[name] for name in before if name != INDEX} == {
        name: content for name, content in before.items() if name != INDEX
    }
    scales = [
        one
        for one in read_checkpoint(done.directory).tensors.values()
        if one.name.endswith("scale") and "input" in one.name
    ]
    assert len(scales) == 27
    assert {float(read_floats(one)[0]) for one in scales} == {value}


def test_one_scale_of_ones_is_still_said_to_be_unmeasured(make: Make, tmp_path: Path, repair: Place) -> None:
    root = without_input_scales(make("modelopt")).write(tmp_path / "model")
    assert codes(repair(root, Actions(set_input_scale=1.0)).directory) == ["input-scale-ones"]


def test_the_ignore_list_says_what_the_tensors_are(make: Make, tmp_path: Path, repair: Place) -> None:
    model = make("modelopt")
    model.config["quantization_config"]["ignore"] = ["*o_proj", "model.layers.1.mlp.gate"]
    root = model.write(tmp_path / "model")
    assert set(codes(root)) == {"ignore-lacks", "ignored-but-quantized", "quant-configs-differ"}
    done = repair(root, Actions(restore_ignore=True))
    assert codes(done.directory) == []
    config = json.loads((done.directory / "config.json").read_text())
    assert config["quantization_config"]["ignore"] == [
        "model.layers.1.mlp.gate",
        "lm_head",
        "model.layers.2.mlp.gate",
        "mtp.fc",
    ]
    assert config["eos_token_id"] == [2, 3]


def test_an_ignore_list_that_would_hide_a_quantized_layer_is_refused(make: Make, tmp_path: Path) -> None:
    model = make("modelopt")
    model.tensors["model.layers.0.mlp.down.weight"] = model.tensors["model.layers.1.mlp.gate.weight"]
    root = model.write(tmp_path / "model")
    with pytest.raises(ConfigurationError, match="would hide"):
        repair_in_place(root, Actions(restore_ignore=True))


def test_the_config_comes_from_the_base(make: Make, tmp_path: Path, repair: Place) -> None:
    base = make("base").write(tmp_path / "base")
    model = make("modelopt")
    model.config |= {"num_hidden_layers": 1, "vocab_size": 2, "eos_token_id": 200, "pad_token_id": 300}
    root = model.write(tmp_path / "model")
    assert set(codes(root)) == {"config-num-layers", "config-vocab-size", "config-token-id"}
    done = repair(root, Actions(restore_config=True, base=base))
    assert codes(done.directory) == []
    assert "quantization_config" in json.loads((done.directory / "config.json").read_text())


@pytest.mark.parametrize("part", [None, "text_config"])
def test_the_kinds_of_the_layers_come_from_the_base(
    make: Make, tmp_path: Path, repair: Place, part: str | None
) -> None:
    """A template of one layer leaks the lists that have an entry for each layer, whatever they are called."""
    one = {"num_hidden_layers": 1, "layer_types": ["full_attention"], "no_rope_layers": [1], "block_configs": [{}]}
    whole = {
        "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "no_rope_layers": [1, 1, 0],
        "block_configs": [{}, {}, {"attention": None}],
    }
    lists = {"hybrid_override_pattern": "M*E", "mlp_only_layers": [0], "architectures": ["Other"]}
    base_model, model = make("base"), make("modelopt")
    for config, fields in ((base_model.config, whole | lists), (model.config, one)):
        config.update({part: fields} if part else fields)
    base = base_model.write(tmp_path / "base")
    root = model.write(tmp_path / "model")
    done = repair(root, Actions(restore_config=True, base=base))
    restored = json.loads((done.directory / "config.json").read_text())
    found = restored[part] if part else restored
    assert {name: found[name] for name in whole} == whole
    assert found["hybrid_override_pattern"] == "M*E"
    assert restored["architectures"] == ["Qwen3MoeForCausalLM"]


def test_the_config_of_another_model_is_refused(make: Make, tmp_path: Path) -> None:
    other = make("base")
    other.config["num_hidden_layers"] = 7
    base = other.write(tmp_path / "base")
    root = make("modelopt").write(tmp_path / "model")
    with pytest.raises(ConfigurationError, match="does not fit"):
        repair_in_place(root, Actions(restore_config=True, base=base))


def test_the_index_is_made_from_the_files(make: Make, tmp_path: Path, repair: Place) -> None:
    root = make("modelopt").write(tmp_path / "model")
    whole = json.loads((root / INDEX).read_text())["weight_map"]
    (root / INDEX).unlink()
    done = repair(root, Actions(rebuild_index=True))
    rebuilt = json.loads((done.directory / INDEX).read_text())
    assert rebuilt["weight_map"] == whole
    assert rebuilt["metadata"]["total_size"] == sum(
        one.nbytes for one in read_checkpoint(done.directory).tensors.values()
    )


def test_a_second_copy_of_the_weights_is_not_indexed(make: Make, tmp_path: Path) -> None:
    root = make("modelopt").write(tmp_path / "model")
    shutil.copy(root / "model-00001-of-00002.safetensors", root / "other.safetensors")
    with pytest.raises(ConfigurationError, match="stands in"):
        repair_in_place(root, Actions(rebuild_index=True))


def test_tokenizer_files_are_copied_but_never_replaced(make: Make, tmp_path: Path, repair: Place) -> None:
    base = make("base").write(tmp_path / "base")
    root = make("modelopt").write(tmp_path / "model")
    (root / "tokenizer_config.json").unlink()
    (root / "tokenizer.json").write_text('{"mine": true}')
    assert codes(root) == ["chat-template-missing"]
    done = repair(root, Actions(copy_tokenizer=True, base=base))
    assert codes(done.directory) == []
    assert done.written == ("tokenizer_config.json",)
    assert json.loads((done.directory / "tokenizer.json").read_text()) == {"mine": True}


def everything(base: Path) -> Actions:
    return Actions(
        set_input_scale=1.0,
        restore_ignore=True,
        restore_config=True,
        rebuild_index=True,
        copy_tokenizer=True,
        base=base,
    )


def broken(make: Make, root: Path) -> Path:
    model = without_input_scales(make("modelopt"))
    model.config["vocab_size"] = 2
    model.config["quantization_config"]["ignore"] = []
    model.write(root)
    (root / INDEX).unlink()
    (root / "tokenizer.json").unlink()
    return root


def test_twice_is_once(make: Make, tmp_path: Path, repair: Place) -> None:
    base = make("base").write(tmp_path / "base")
    root = broken(make, tmp_path / "model")
    first = repair(root, everything(base))
    assert set(first.written) == {SIDECAR, INDEX, "config.json", "tokenizer.json"}
    before, receipt = snapshot(first.directory), (first.directory / RECEIPT).read_bytes()
    assert codes(first.directory) == ["input-scale-ones"]
    again = repair(root, everything(base))
    assert again.written == ()
    assert again.notices == ()
    assert snapshot(first.directory) == before
    assert (first.directory / RECEIPT).read_bytes() == receipt


def test_the_receipt_and_the_originals_are_kept(make: Make, tmp_path: Path) -> None:
    base = make("base").write(tmp_path / "base")
    root = broken(make, tmp_path / "model")
    config = (root / "config.json").read_bytes()
    hashes = {name: sha256_file(root / name) for name in ("config.json",)}
    repair_in_place(root, everything(base))
    (receipt,) = json.loads((root / RECEIPT).read_text())["repairs"]
    changed = {one["path"]: one for one in receipt["files"]}
    assert changed["config.json"]["before"] == hashes["config.json"]
    assert changed["config.json"]["after"] == sha256_file(root / "config.json")
    assert changed[SIDECAR]["before"] is None
    assert receipt["actions"]["set_input_scale"] == 1.0
    assert (root / ".sparkwright/originals/config.json").read_bytes() == config
    (root / "tokenizer.json").unlink()
    repair_in_place(root, Actions(copy_tokenizer=True, base=base))
    assert len(json.loads((root / RECEIPT).read_text())["repairs"]) == 2


def test_an_output_shares_the_shards_and_nothing_else(make: Make, tmp_path: Path) -> None:
    root = without_input_scales(make("modelopt")).write(tmp_path / "model")
    before = snapshot(root)
    output = repair_into(root, tmp_path / "mended", Actions(set_input_scale=1.0)).directory
    assert snapshot(root) == before
    for path in sorted(root.iterdir()):
        shared = path.stat().st_ino == (output / path.name).stat().st_ino
        assert shared == (path.suffix == ".safetensors"), path


def test_an_output_shares_the_shards_of_a_hub_snapshot(make: Make, tmp_path: Path) -> None:
    """There every file is a link to a blob whose name has no suffix."""
    root = without_input_scales(make("modelopt")).write(tmp_path / "model")
    blobs, snapshots = tmp_path / "hub/blobs", tmp_path / "hub/snapshots/0123"
    blobs.mkdir(parents=True)
    snapshots.mkdir(parents=True)
    for path in sorted(root.iterdir()):
        blob = blobs / sha256_file(path)
        path.rename(blob)
        (snapshots / path.name).symlink_to(blob)
    steps: list[tuple[int, int]] = []
    output = repair_into(
        snapshots,
        tmp_path / "mended",
        Actions(set_input_scale=1.0),
        advance=lambda done, total: steps.append((done, total)),
    ).directory
    for path in sorted(snapshots.iterdir()):
        shared = path.stat().st_ino == (output / path.name).stat().st_ino
        assert shared == (path.suffix == ".safetensors"), path
        assert not (output / path.name).is_symlink(), path
    kept = len([path for path in snapshots.iterdir() if path.name != INDEX])
    assert steps == [(done, kept) for done in range(1, kept + 1)]


def test_no_copy_is_made_of_a_folder_whose_repair_was_interrupted(make: Make, tmp_path: Path) -> None:
    root = without_input_scales(make("modelopt")).write(tmp_path / "model")
    (root / JOURNAL).parent.mkdir()
    (root / JOURNAL).write_text("{}")
    with pytest.raises(UsageError, match="did not come to its end"):
        repair_into(root, tmp_path / "mended", Actions(set_input_scale=1.0))
    assert not (tmp_path / "mended").exists()
    repair_in_place(root, Actions(set_input_scale=1.0))
    repair_into(root, tmp_path / "mended", Actions(rebuild_index=True))


def test_shards_are_copied_where_links_are_impossible(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    root = without_input_scales(make("modelopt")).write(tmp_path / "model")
    assert codes(repair_into(root, tmp_path / "mended", Actions(set_input_scale=0.5)).directory) == []


def test_what_cannot_be_asked(make: Make, tmp_path: Path) -> None:
    root = make("modelopt").write(tmp_path / "model")
    with pytest.raises(UsageError, match="no repair was named"):
        Actions()
    with pytest.raises(UsageError, match="--base"):
        Actions(restore_config=True)
    for scale in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="no input scale"):
            Actions(set_input_scale=scale)
    with pytest.raises(UsageError, match="exists"):
        repair_into(root, tmp_path, Actions(rebuild_index=True))
    with pytest.raises(UsageError, match="lies in the folder"):
        repair_into(root, root / "mended", Actions(rebuild_index=True))
    with pytest.raises(InputUnreadableError):
        repair_in_place(tmp_path / "nowhere", Actions(rebuild_index=True))
    with exclusive_lock(root, doing="repairing"), pytest.raises(LockedError):
        repair_in_place(root, Actions(rebuild_index=True))
    base_model = make("base").write(tmp_path / "base")
    with pytest.raises(ConfigurationError, match="does not say how it is quantized"):
        repair_in_place(base_model, Actions(restore_ignore=True))


def test_damaged_shards_are_never_repaired(make: Make, tmp_path: Path) -> None:
    root = without_input_scales(make("modelopt")).write(tmp_path / "model")
    shard = root / "model-00002-of-00002.safetensors"
    with shard.open("r+b") as stream:
        stream.truncate(shard.stat().st_size - 10)
    before = snapshot(root)
    with pytest.raises(InputUnreadableError, match="truncated"):
        repair_in_place(root, Actions(set_input_scale=1.0))
    assert snapshot(root) == before


def test_killed_at_any_write_in_place(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = make("base").write(tmp_path / "base")
    pristine = broken(make, tmp_path / "pristine")
    old = snapshot(pristine)

    def fresh(name: str) -> Path:
        return Path(shutil.copytree(pristine, tmp_path / name))

    with monkeypatch.context() as patched:
        root = fresh("whole")
        count = count_writes(patched, None)
        repair_in_place(root, everything(base))
        new, writes = snapshot(root), count()
    assert writes > 8
    outcomes = set()
    for kill_at in range(1, writes + 1):
        root = fresh(f"kill-{kill_at}")
        with monkeypatch.context() as patched:
            count_writes(patched, kill_at)
            with pytest.raises(Killed):
                repair_in_place(root, everything(base))
        seen = snapshot(root)
        if seen not in (old, new):
            assert "repair-interrupted" in codes(root), kill_at
            assert "shard-missing" not in codes(root), kill_at  # the index never names what is not there yet
        outcomes.add("old" if seen == old else "new" if seen == new else "between")
        repair_in_place(root, everything(base))
        assert snapshot(root) == new, kill_at
        assert "repair-interrupted" not in codes(root)
        assert len(json.loads((root / RECEIPT).read_text())["repairs"]) == 1
    assert outcomes == {"old", "new", "between"}


def test_scales_alone_are_either_there_or_not(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a single repair there is nothing between: the index is the only thing that is looked at."""
    pristine = without_input_scales(make("modelopt")).write(tmp_path / "pristine")
    for kill_at in range(1, 12):
        root = Path(shutil.copytree(pristine, tmp_path / f"kill-{kill_at}"))
        with monkeypatch.context() as patched:
            count_writes(patched, kill_at)
            try:
                repair_in_place(root, Actions(set_input_scale=1.0))
            except Killed:
                scales = [name for name in read_checkpoint(root).tensors if name.endswith("input_scale")]
                assert len(scales) in (0, 27)
            else:
                return
    pytest.fail("more writes than expected")


def test_killed_at_any_write_of_an_output(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = without_input_scales(make("modelopt")).write(tmp_path / "model")
    actions = Actions(set_input_scale=1.0)
    for kill_at in range(1, 40):
        output = tmp_path / f"mended-{kill_at}"
        with monkeypatch.context() as patched:
            count_writes(patched, kill_at)
            try:
                repair_into(root, output, actions)
            except Killed:
                assert not output.exists()
            else:
                break
        assert repair_into(root, output, actions).written
        assert codes(output) == ["input-scale-ones"]
    assert kill_at > 8


def test_numpy_is_not_needed_to_read_headers() -> None:
    # The entrypoint runs the header-only part before every start.
    script = "import sys, sparkwright.checkpoint.verify as v; sys.exit('numpy' in sys.modules or not v.verify_headers)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
