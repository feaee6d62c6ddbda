"""CHECK: a local checkpoint that would answer noise is refused before anything starts; real exports of real tools."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.entrypoint.conftest import Entrypoint
from tests.unit.checkpoint.test_checkpoint_exports import load, write

from sparkwright.checkpoint.findings import Finding, finding
from sparkwright.entrypoint import check as check_module
from sparkwright.entrypoint.check import check
from sparkwright.errors import ConfigurationError

DENSE, EXPERTS = "llama-modelopt-0.47-nvfp4", "moe-modelopt-0.47-nvfp4"
LACKING = "input_scale"
MARLIN = ("--linear-backend", "marlin")


def folder(entrypoint: Entrypoint, name: str, *, lacking: str = "") -> Path:
    """The export, one tensor of that name left out; every user may read it."""
    export = load(name)
    names = [tensor for tensor in export["tensors"] if lacking and tensor.endswith(lacking)]
    return write(entrypoint.home / "model", export, without=names[0] if names else "")


@pytest.mark.parametrize("name", [DENSE, EXPERTS])
def test_a_sound_folder_is_served_without_a_word_about_it(entrypoint: Entrypoint, name: str) -> None:
    ran = entrypoint.run("serve", env={"MODEL": str(folder(entrypoint, name)), "GPU_MEMORY_UTIL": "0.1"})
    assert ran.status == 0, ran.stderr
    assert ran.record["argv"][:2] == ["vllm", "serve"]
    assert "input_scale" not in ran.stderr
    assert "was not checked" not in ran.stderr


@pytest.mark.parametrize("mode", ["serve", "ray-head"])
def test_a_folder_without_an_input_scale_is_refused(entrypoint: Entrypoint, mode: str) -> None:
    model = folder(entrypoint, DENSE, lacking=LACKING)
    ran = entrypoint.run(mode, env={"MODEL": str(model), "HEAD_IP": "127.0.0.1"})
    assert (ran.status, ran.stdout, ran.records) == (78, "", [])
    assert f"MODEL={model} must not be served: a layer with quantized activations lacks its input scale" in ran.stderr
    assert "(input-scale-missing: model.layers.0." in ran.stderr
    assert "CHECK=0 serves it as it is" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_the_check_can_be_left_out(entrypoint: Entrypoint) -> None:
    model = str(folder(entrypoint, DENSE, lacking=LACKING))
    assert entrypoint.dry("serve", env={"MODEL": model})["check"] == model
    assert "check" not in entrypoint.dry("serve", env={"MODEL": model, "CHECK": "no"})
    assert "check" not in entrypoint.dry("serve", "--load-format", "dummy", env={"MODEL": model})
    assert "check" not in entrypoint.dry("serve", env={"MODEL": "owner/name"})
    assert entrypoint.run("serve", env={"MODEL": model, "CHECK": "0"}).status == 0


@pytest.mark.parametrize(
    ("name", "options", "served"),
    [
        (DENSE, MARLIN, True),
        (DENSE, ("--moe-backend", "marlin"), False),
        (EXPERTS, MARLIN, False),
        (EXPERTS, ("--moe-backend", "marlin"), True),
    ],
)
def test_marlin_reads_no_input_scale(entrypoint: Entrypoint, name: str, options: tuple[str, ...], served: bool) -> None:
    lacking = f"experts.0.down_proj.{LACKING}" if name == EXPERTS else LACKING
    model = folder(entrypoint, name, lacking=lacking)
    ran = entrypoint.run("serve", *options, env={"MODEL": str(model)})
    assert ran.status == (0 if served else 78), ran.stderr
    assert "lacks its input scale (input-scale-missing: model.layers." in ran.stderr


def test_a_truncated_shard_is_refused_with_all_that_was_found(entrypoint: Entrypoint) -> None:
    model = folder(entrypoint, DENSE, lacking=LACKING)
    shard = next(model.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])
    ran = entrypoint.run("serve", env={"MODEL": str(model)})
    assert ran.status == 78
    assert "a file is not as long as its header says (shard-truncated" in ran.stderr


def test_warnings_are_notices(entrypoint: Entrypoint) -> None:
    model = folder(entrypoint, DENSE)
    (model / "tokenizer.json").unlink(missing_ok=True)
    (model / "tokenizer_config.json").unlink(missing_ok=True)
    ran = entrypoint.run("serve", env={"MODEL": str(model)})
    assert ran.status == 0, ran.stderr
    assert f"sparkwright: MODEL={model}: there is no tokenizer (tokenizer-missing). vLLM ends unless" in ran.stderr


def test_a_folder_of_another_format_is_served_unchecked(entrypoint: Entrypoint) -> None:
    (entrypoint.home / "config.json").write_text(json.dumps({}), encoding="utf-8")
    ran = entrypoint.run("serve", env={"MODEL": str(entrypoint.home)})
    assert ran.status == 0, ran.stderr
    assert f"MODEL={entrypoint.home} was not checked: it holds no safetensors file" in ran.stderr


def test_a_slow_disk_does_not_hold_up_the_start(entrypoint: Entrypoint, monkeypatch: pytest.MonkeyPatch) -> None:
    model = folder(entrypoint, DENSE, lacking=LACKING)
    answered = threading.Event()
    monkeypatch.setattr("sparkwright.checkpoint.checkpoint.read_shard", lambda _: answered.wait(60))
    notices = check(str(model), (), seconds=0.1)
    answered.set()
    assert notices == [f"MODEL={model} was not checked to the end: its headers took more than 0.1 s"]
    assert check_module.SECONDS == 2


def test_what_was_found_in_time_counts(entrypoint: Entrypoint, monkeypatch: pytest.MonkeyPatch) -> None:
    model = folder(entrypoint, DENSE)
    answered = threading.Event()

    def judge(_: object) -> Iterator[Finding]:
        yield finding("chat-template-missing")
        yield finding(worst)
        answered.wait(60)

    monkeypatch.setattr("sparkwright.checkpoint.structure.check_structure", judge)
    worst = "shard-truncated"
    with pytest.raises(ConfigurationError, match="must not be served: a file is not as long as"):
        check(str(model), (), seconds=0.2)
    worst = "tokenizer-missing"
    notices = check(str(model), (), seconds=0.2)
    answered.set()
    assert [notice.removeprefix(f"MODEL={model}").split(":")[0] for notice in notices] == [
        "",
        "",
        " was not checked to the end",
    ]


def test_a_fault_of_the_check_is_not_taken_for_a_slow_disk(
    entrypoint: Entrypoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = folder(entrypoint, DENSE)

    def judge(_: object) -> Iterator[Finding]:
        yield finding("tokenizer-missing")
        raise KeyError("width")

    monkeypatch.setattr("sparkwright.checkpoint.structure.check_structure", judge)
    first, second = check(str(model), ())
    assert "there is no tokenizer" in first
    assert second == f"MODEL={model} was not checked to the end: the check itself failed (KeyError: 'width')"


def test_a_mixture_is_checked_within_the_budget(entrypoint: Entrypoint) -> None:
    """A third of one with 128 experts in each of 48 layers in a third of the time; every exclusion written out."""
    layers, experts = range(16), range(128)
    linears = [f"self_attn.{one}_proj" for one in "qkvo"]
    ignored = ["lm_head", *(f"model.layers.{layer}.{one}" for layer in layers for one in (*linears, "mlp.gate"))]
    quantized = [
        f"model.layers.{layer}.mlp.experts.{expert}.{one}_proj"
        for layer in layers
        for expert in experts
        for one in ("gate", "up", "down")
    ]
    parts = {"weight_packed": ("U8", [16, 8]), "weight_scale": ("F8_E4M3", [16, 1])}
    parts |= {part: ("F32", [1]) for part in ("weight_global_scale", "input_global_scale")}
    tensors = {f"{name}.{part}": tensor for name in quantized for part, tensor in parts.items()}
    tensors |= {f"{name}.weight": ("BF16", [16, 16]) for name in (*ignored, "model.embed_tokens")}
    tensors["model.norm.weight"] = ("BF16", [16])
    config = load("moe-llmcompressor-0.14-nvfp4")["config"] | {"num_hidden_layers": len(layers)}
    config |= {"vocab_size": 16, "hidden_size": 16, "head_dim": 16, "num_key_value_heads": 1}
    config |= {"layer_types": ["full_attention"] * len(layers)}
    config["quantization_config"]["ignore"] = ignored
    model = write(entrypoint.home / "model", {"tensors": tensors, "config": config})
    seconds = []
    for _ in range(3):  # the best of three, as others may use the machine
        before = time.process_time()
        assert check(str(model), (), seconds=60) == []
        seconds.append(time.process_time() - before)
    assert min(seconds) < check_module.SECONDS / 3
