"""CHECK: a local checkpoint that would answer noise is refused before anything starts; real exports of real tools."""

import json
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.entrypoint.conftest import Entrypoint
from tests.unit.checkpoint.test_checkpoint_exports import load, write

from sparkwright.entrypoint import check as check_module
from sparkwright.entrypoint.check import check

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

    def read(_: Path) -> SimpleNamespace:
        answered.wait(60)
        return SimpleNamespace(findings=())

    monkeypatch.setattr("sparkwright.checkpoint.verify.verify_headers", read)
    notices = check(str(model), (), seconds=0.1)
    answered.set()
    assert notices == [f"MODEL={model} was not checked: its headers could not be read within 0.1 s"]
    assert check_module.SECONDS == 2
