"""What cannot work is refused before the run begins, in words of its own, and leaves nothing that is in the way."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.quantize.conftest import command

from sparkwright.errors import (
    ConfigurationError,
    InputUnreadableError,
    SparkwrightError,
    UnavailableError,
    UsageError,
)

if TYPE_CHECKING:
    from tests.quantize.conftest import Models, Warm

pytestmark = pytest.mark.quantizes


def _says(**settings: object) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        file = model / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | settings))

    return change


def _without_tokenizer(model: Path) -> None:
    for file in model.glob("tokenizer*"):
        file.unlink()


def _as_it_is(_model: Path) -> None:
    """Nothing is wrong with the model."""


@pytest.mark.parametrize(
    ("change", "options", "error", "said"),
    [
        (_as_it_is, ["--device", "banana"], UsageError, "banana is no device"),
        (_as_it_is, ["--device", "cuda:7"], UnavailableError, "torch sees 0 CUDA devices"),
        (_as_it_is, ["--exclude", "self_attn"], UsageError, "names are like model.layers.3.mlp.down_proj"),
        (_without_tokenizer, [], InputUnreadableError, "has no tokenizer"),
        (_says(model_type="zorg"), [], ConfigurationError, "cannot make the model of"),
        (_says(model_type="mistral3"), [], ConfigurationError, "cannot make the model of"),
        (
            _says(model_type="zorg", auto_map={"AutoConfig": "a.B", "AutoModelForCausalLM": "a.C"}),
            [],
            ConfigurationError,
            "code of its own, which is never run",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_the_run_begins(
    models: "Models",
    quantizing: "Warm",
    data: Path,
    tmp_path: Path,
    change: Callable[[Path], None],
    options: list[str],
    error: type[SparkwrightError],
    said: str,
) -> None:
    model = tmp_path / "model"
    shutil.copytree(models("llama"), model)
    change(model)
    job = quantizing.start("sparkwright", *command(model, tmp_path / "made", data), *options)
    assert job.wait() == error.exit_code, job.output
    assert said in job.output
    assert "Traceback" not in job.output
    assert not [*(tmp_path / "made").rglob("run.json")]


def test_a_module_that_is_no_linear_may_be_named(
    models: "Models", quantizing: "Warm", data: Path, tmp_path: Path
) -> None:
    words = command(models("qwen3_moe"), tmp_path / "made", data)
    quantizing.run("sparkwright", *words, "--exclude", "*.mlp.gate", "--exclude", "model.embed_tokens")


def test_a_resumed_run_wants_the_scratch_folder_of_before(
    models: "Models", quantizing: "Warm", data: Path, tmp_path: Path
) -> None:
    made = tmp_path / "made"
    words = command(models("llama"), made, data)
    killed = quantizing.start("sparkwright", *words, "--scratch", str(tmp_path / "before"), die=(6, made))
    assert killed.wait() == -signal.SIGKILL, killed.output
    elsewhere = quantizing.start("sparkwright", *words, "--resume", "--scratch", str(tmp_path / "other"))
    assert elsewhere.wait() == UsageError.exit_code, elsewhere.output
    assert "with which the run would go on, are not in" in elsewhere.output
    assert "going on at layer" in quantizing.run(
        "sparkwright", *words, "--resume", "--scratch", str(tmp_path / "before")
    )


def test_a_run_whose_cluster_was_not_there_may_begin_again(
    models: "Models", quantizing: "Warm", data: Path, tmp_path: Path
) -> None:
    words = command(models("llama"), tmp_path / "made", data)
    refused = quantizing.start("sparkwright", *words, "--ray", "127.0.0.1:1")
    assert refused.wait() == UnavailableError.exit_code, refused.output
    quantizing.run("sparkwright", *words)
