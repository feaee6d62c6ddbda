"""The result does not depend on how it was made: by modelopt at once, layer by layer, or over several Ray actors."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.patches.upstream_code import modelopt_config
from tests.quantize.conftest import LENGTH, SAMPLES, Quantize, command, contents, settings, tensors
from tests.serve.conftest import free_port, until

from sparkwright.checkpoint.modules import is_vision
from sparkwright.checkpoint.verify import verify
from sparkwright.errors import ConfigurationError, OutputError, UnavailableError

if TYPE_CHECKING:
    from tests.quantize.conftest import Models, Warm

pytestmark = pytest.mark.quantizes

ARCHITECTURES = ("llama", "mistral", "qwen3", "qwen3_moe", "qwen3_next")


class Made:
    """The same model quantized in different ways, each made once."""

    def __init__(self, warm: "Warm", models: "Models", quantize: Quantize, data: Path, folder: Path) -> None:
        self._warm, self.models, self._quantize, self._data, self._folder = warm, models, quantize, data, folder

    def at_once(self, architecture: str) -> Path:
        """By modelopt's own flow, the whole model in memory."""
        made = self._folder / f"{architecture}-at-once"
        if not made.exists():
            counts = ("--samples", str(SAMPLES), "--length", str(LENGTH))
            self._warm.run("make_checkpoint.py", self.models(architecture), made, "--data", self._data, *counts)
        return made

    def by_layer(self, architecture: str) -> Path:
        """By `sparkwright quantize` in one process."""
        made = self._folder / f"{architecture}-by-layer"
        if not made.exists():
            self._quantize(self.models(architecture), made)
        return made


@pytest.fixture(scope="module")
def made(
    quantizing: "Warm", models: "Models", quantize: Quantize, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Made:
    return Made(quantizing, models, quantize, data, tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def ray_address(quantizing: "Warm") -> Iterator[str]:
    """A Ray cluster of this machine; its workers start from the quantizer's own Python."""
    port = free_port()
    words = ["-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}", "--node-ip-address=127.0.0.1"]
    words += ["--num-cpus=2", "--include-dashboard=false", "--disable-usage-stats"]
    with (quantizing.folder / "ray.log").open("wb") as log:
        # Not `ray stop` at the end: that ends every cluster of the machine.
        cluster = subprocess.Popen(
            [quantizing.python, *words], env=quantizing.environment, stdout=log, stderr=subprocess.STDOUT
        )
    log_file = quantizing.folder / "ray.log"
    until(lambda: b"Ray runtime started" in log_file.read_bytes(), 240, log_file.read_text)
    yield f"127.0.0.1:{port}"
    cluster.terminate()
    cluster.wait(60)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_layer_by_layer_gives_the_tensors_of_modelopt(made: Made, architecture: str) -> None:
    expected, found = tensors(made.at_once(architecture)), tensors(made.by_layer(architecture))
    assert sorted(found) == sorted(expected)
    assert [name for name in expected if found[name] != expected[name]] == []


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_layer_by_layer_gives_the_settings_of_modelopt(made: Made, architecture: str) -> None:
    """Nothing of a model cut to one layer, or of a small vocabulary, gets into them."""
    expected, found = made.at_once(architecture), made.by_layer(architecture)
    for name in ("config.json", "hf_quant_config.json", "generation_config.json"):
        assert settings(found, name) == settings(expected, name)
    base = settings(made.models(architecture), "config.json")
    for key in ("num_hidden_layers", "vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "use_cache"):
        assert settings(found, "config.json")[key] == base[key]
    ignored = settings(found, "config.json")["quantization_config"]["ignore"]  # type: ignore[index]
    assert "lm_head" in ignored


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_result_is_sound(made: Made, architecture: str) -> None:
    result = verify(made.by_layer(architecture), against=made.models(architecture), sample=0)
    assert result.findings == ()
    assert result.not_compared == ()
    assert len(result.differences) >= 29


@pytest.mark.parametrize(
    ("architecture", "found_in"),
    [("falcon_h1", []), ("granitemoe", ["against-not-compared"]), ("phi", []), ("qwen3_5_text", [])],
)
def test_what_modelopt_does_not_quantize_is_ignored(made: Made, architecture: str, found_in: list[str]) -> None:
    """modelopt's own flow has the same tensors; its settings name what is in 16 bits wrongly, or not at all."""
    found = made.by_layer(architecture)
    assert tensors(found) == tensors(made.at_once(architecture))
    result = verify(found, against=made.models(architecture), sample=0)
    assert [one.rule.code for one in result.findings] == found_in
    ignored = settings(found, "config.json")["quantization_config"]["ignore"]  # type: ignore[index]
    convolutions = {name.removesuffix(".weight") for name in tensors(found) if name.endswith("conv1d.weight")}
    assert convolutions <= set(ignored)


@pytest.mark.parametrize(
    ("architecture", "layer", "projection", "ignored"),
    [("qwen3_next", "mtp.layers.0", "mtp.fc", "mtp*"), ("llama", "model.layers.4", "model.layers.4.eh_proj", None)],
)
def test_multi_token_prediction_is_kept_as_it_is(
    made: Made,
    models: "Models",
    quantize: Quantize,
    vllm_tree: Callable[[str], Path],
    tmp_path: Path,
    architecture: str,
    layer: str,
    projection: str,
    ignored: str | None,
) -> None:
    """transformers does not load it, so modelopt's own flow loses it; vLLM finds it, and builds it in 16 bits."""
    source = models(architecture, "--prediction", layer, projection)
    said = quantize(source, tmp_path / "made")
    original, expected, found = tensors(source), tensors(made.at_once(architecture)), tensors(tmp_path / "made")
    kept = {name for name in original if name.startswith((layer, projection))}
    assert f"{len(kept)} tensors, copied as they are" in said
    assert {name: found.pop(name) for name in kept} == {name: original[name] for name in kept}
    assert found == expected
    before = settings(made.at_once(architecture), "config.json")["quantization_config"]
    after = settings(tmp_path / "made", "config.json")["quantization_config"]
    assert isinstance(before, dict)
    assert after == before | {"ignore": [*before["ignore"], ignored or f"{layer}*"]}
    assert verify(tmp_path / "made", against=source).findings == ()
    read = modelopt_config(vllm_tree("0.33.0"), after["ignore"])
    assert read.is_layer_excluded(projection)
    assert read.is_layer_excluded(f"{layer}.self_attn.qkv_proj")
    assert not read.is_layer_excluded("model.layers.3.self_attn.qkv_proj")


@pytest.mark.parametrize("architecture", ["qwen3_5_moe", "mistral3"])
def test_what_sees_is_kept_as_it_is(made: Made, architecture: str) -> None:
    source, found = made.models(architecture), made.by_layer(architecture)
    original, quantized = tensors(source), tensors(found)
    assert quantized == tensors(made.at_once(architecture))
    sees = {name for name in original if is_vision(name)}
    assert len(sees) > 20
    assert {name: quantized[name] for name in sees} == {name: original[name] for name in sees}
    expected, config = (settings(one, "config.json") for one in (made.at_once(architecture), found))
    theirs, ours = expected.pop("quantization_config"), config.pop("quantization_config")
    assert config == expected
    # modelopt's own flow names the head as it is called in memory.
    last = [[name.rpartition(".")[2] for name in one["ignore"]] for one in (theirs, ours)]  # type: ignore[index]
    assert last[0] == last[1]
    result = verify(found, against=source, sample=0)
    assert (result.findings, result.not_compared) == ((), ())


def test_layers_that_get_more_than_hidden_states_are_refused(
    models: "Models", quantizing: "Warm", data: Path, tmp_path: Path
) -> None:
    job = quantizing.start("sparkwright", *command(models("gemma4_text"), tmp_path / "made", data))
    assert job.wait() == ConfigurationError.exit_code, job.output
    assert "cannot be taken apart by layer" in job.output
    assert "Traceback" not in job.output


def test_nothing_in_the_result_runs_when_it_is_read(made: Made) -> None:
    suffixes = {path.suffix for path in made.by_layer("llama").rglob("*") if path.is_file()}
    assert suffixes <= {".safetensors", ".json", ".jinja"}


def test_a_model_in_many_files_with_a_tied_head(
    quantizing: "Warm", models: "Models", quantize: Quantize, data: Path, tmp_path: Path
) -> None:
    source = models("llama", "--tied", "--files", "1MB", "--layers", "3")
    assert len(list(source.glob("*.safetensors"))) > 2
    quantize(source, tmp_path / "by-layer")
    counts = ("--samples", str(SAMPLES), "--length", str(LENGTH))
    quantizing.run("make_checkpoint.py", source, tmp_path / "at-once", "--data", data, *counts)
    assert tensors(tmp_path / "by-layer") == tensors(tmp_path / "at-once")
    assert verify(tmp_path / "by-layer", against=source).findings == ()


@pytest.mark.parametrize("architecture", ["qwen3", "qwen3_moe"])
def test_two_ray_actors_give_the_same_files(
    made: Made, quantize: Quantize, ray_address: str, tmp_path: Path, architecture: str
) -> None:
    quantize(made.models(architecture), tmp_path / "made", "--ray", ray_address, "--shard-layers", "1,3")
    assert contents(tmp_path / "made") == contents(made.by_layer(architecture))


def test_actors_that_share_the_folder_write_to_it_themselves(
    made: Made, quantize: Quantize, ray_address: str, tmp_path: Path
) -> None:
    words = ("--ray", ray_address, "--actors", "2", "--shared-folder", "--scratch", str(tmp_path / "scratch"))
    quantize(made.models("llama"), tmp_path / "made", *words)
    assert contents(tmp_path / "made") == contents(made.by_layer("llama"))
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_node_whose_disk_is_too_small_is_named(
    made: Made, quantizing: "Warm", ray_address: str, data: Path, small_disk: Path, tmp_path: Path
) -> None:
    words = [*command(made.models("llama"), tmp_path / "made", data), "--ray", ray_address, "--actors", "2"]
    job = quantizing.start("sparkwright", *words, "--scratch", str(small_disk))
    assert job.wait() == OutputError.exit_code, job.output
    assert f"{os.uname().nodename} has 0.00 GB of disk free for {small_disk}" in " ".join(job.output.split())
    assert "--scratch" in job.output
    assert "Traceback" not in job.output


def test_more_actors_than_there_is_room_for_are_refused_and_not_waited_for(
    made: Made, quantizing: "Warm", ray_address: str, data: Path, tmp_path: Path
) -> None:
    words = [*command(made.models("llama"), tmp_path / "made", data), "--ray", ray_address, "--actors", "3"]
    job = quantizing.start("sparkwright", *words)
    assert job.wait(240) == ConfigurationError.exit_code, job.output
    assert "has 2 CPUs and 0 GPUs" in job.output


def test_a_node_with_another_model_or_without_a_gpu_is_named(
    quantizing: "Warm", models: "Models", tmp_path: Path
) -> None:
    """Headers and settings alike; and Ray believes the number of GPUs that it was told."""
    model, tuned = models("llama"), models("llama", "--seed", "1")
    left = tmp_path / "run/0/activations/layer-00001.bin"
    left.parent.mkdir(parents=True)
    left.touch()
    assert "['activations']" in quantizing.run("open_actor.py", model, tmp_path)
    assert not left.exists()
    for words, said in (
        (("--other", tuned), "is not the model of the first node"),
        (("--device", "cuda"), "there is no device cuda"),
    ):
        job = quantizing.start("open_actor.py", model, tmp_path, *words)
        assert job.wait() == 1
        assert f"on {os.uname().nodename}: " in job.output
        assert said in job.output


def test_a_disk_that_fills_up_on_a_node_is_named_and_one_process_goes_on(
    made: Made, quantizing: "Warm", ray_address: str, data: Path, small_disk: Path, tmp_path: Path
) -> None:
    output = tmp_path / "made"
    words = [*command(made.models("llama"), output, data), "--resume"]  # which asks for no room in advance
    job = quantizing.start("sparkwright", *words, "--ray", ray_address, "--actors", "2", "--scratch", str(small_disk))
    assert job.wait() == OutputError.exit_code, job.output
    assert f"on {os.uname().nodename}: the disk is full" in job.output
    assert "Traceback" not in job.output
    assert not (output / "config.json").exists()
    again = quantizing.run("sparkwright", *words)
    assert "no layer's inputs are kept in" in again
    assert "beginning again at layer 1 of 4" in again
    assert contents(output) == contents(made.by_layer("llama"))


def test_a_lost_ray_actor_ends_the_run_and_any_others_or_none_go_on(
    models: "Models", quantizing: "Warm", ray_address: str, data: Path, tmp_path: Path
) -> None:
    """What a resumed run needs is in the folder of the result: nothing of the nodes, and not how many there were."""
    output, alone = tmp_path / "made", tmp_path / "alone"
    on_nodes = ["--ray", ray_address, "--save-every", "1", "--shard-layers"]
    source = models("llama", "--layers", "16")
    words = command(source, output, data)
    job = quantizing.start("sparkwright", *words, *on_nodes, "4,12")
    until(lambda: any(output.glob("model-00002-*")) or job.status is not None, 240, lambda: job.output)
    for pid in _actors(quantizing.environment["HOME"])[-1:]:
        os.kill(pid, signal.SIGKILL)
    assert job.wait() == UnavailableError.exit_code, job.output
    assert "--resume" in job.output
    assert "Traceback" not in job.output
    assert not (output / "config.json").exists()
    shutil.copytree(output, alone)
    again = quantizing.run("sparkwright", *words, *on_nodes, "12,4", "--resume")
    assert re.search(r"going on at layer \d+ of 16", again)
    again = quantizing.run("sparkwright", *command(source, alone, data), "--resume")
    assert re.search(r"going on at layer \d+ of 16", again)
    quantizing.run("sparkwright", *command(source, tmp_path / "undisturbed", data))
    assert contents(output) == contents(alone) == contents(tmp_path / "undisturbed")


def _actors(home: str) -> list[int]:
    """The processes of our actors in clusters that were started with this HOME."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            ours = f"HOME={home}\0".encode() in (folder / "environ").read_bytes()
            if ours and (folder / "cmdline").read_bytes().startswith(b"ray::LayerActor"):
                found.append(int(folder.name))
    return sorted(found)
