"""The estimate from headers, and the refusals."""

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from sparkwright.cli import app
from sparkwright.errors import ConfigurationError, InputUnreadableError, OutputError, UsageError
from sparkwright.quantize.options import Attention, Calibration, Nodes, Options, Recipe
from sparkwright.quantize.plan import FIXED_BYTES, Plan, deal_layers, make_plan
from sparkwright.quantize.source import read_source

HIDDEN, LAYERS = 32, 3


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    config = {"num_hidden_layers": LAYERS, "hidden_size": HIDDEN, "intermediate_size": 64, "dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config))
    tensors: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float16]]] = {
        "model.embed_tokens.weight": np.zeros((100, HIDDEN), np.float16)
    }
    for number in range(LAYERS):
        tensors[f"model.layers.{number}.mlp.up_proj.weight"] = np.zeros((64, HIDDEN), np.float16)
        tensors[f"model.layers.{number}.norm.weight"] = np.zeros(HIDDEN, np.float16)
    save_file(tensors, folder / "model.safetensors")
    return folder


def _plan(model: Path, recipe: Recipe | None = None, **changes: Any) -> Plan:  # noqa: ANN401
    calibration = Calibration(data="", samples=4, length=10)
    options = Options(source=model, output=model.parent / "out", calibration=calibration, recipe=recipe or Recipe())
    return dataclasses.replace(make_plan(read_source(model), options), **changes)


def test_the_estimate(model: Path) -> None:
    plan = _plan(model)
    assert plan.largest_layer == 2 * (64 * HIDDEN + HIDDEN)
    assert plan.memory == 2 * plan.largest_layer + plan.window + FIXED_BYTES
    assert plan.scratch == 3 * 4 * 10 * HIDDEN * 2
    assert plan.output == 2 * 100 * HIDDEN + LAYERS * (64 * HIDDEN * 9 // 16 + 2 * HIDDEN)


def test_what_is_excluded_stays_as_large_as_it_is(model: Path) -> None:
    stored = sum(tensor.nbytes for tensor in read_source(model).tensors.values())
    assert _plan(model, Recipe(exclude=("*.mlp",))).output == stored
    assert _plan(model, Recipe(experts_only=True)).output == stored


def test_what_sees_or_predicts_several_tokens_is_copied_and_costs_nothing_else(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "num_nextn_predict_layers": 1}))
    before, weights = _plan(model), load_file(model / "model.safetensors")
    names = (
        "mtp.layers.0.mlp.up_proj.weight",
        "mtp.fc.weight",
        f"model.layers.{LAYERS}.eh_proj.weight",
        "model.visual.blocks.0.mlp.up_proj.weight",
    )
    save_file(weights | {name: np.zeros((4096, HIDDEN), np.float16) for name in names}, model / "model.safetensors")
    copied = len(names) * 4096 * HIDDEN
    expected = dataclasses.replace(before, output=before.output + 2 * copied, parameters=before.parameters + copied)
    free = {one: getattr(expected, one) for one in ("memory_available", "output_free", "scratch_free")}
    assert _plan(model, **free) == expected


def test_memory_does_not_grow_with_depth(model: Path) -> None:
    before = _plan(model).memory
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    assert _plan(model).memory == before


def test_what_cannot_fit_is_refused_with_numbers(model: Path) -> None:
    _plan(model, memory_available=3 * 10**9, output_free=10**9, scratch_free=10**9).check()
    with pytest.raises(ConfigurationError, match=r"2\.00 GB of memory are needed, 1\.00 GB are available"):
        _plan(model, memory_available=10**9).check()
    with pytest.raises(OutputError, match="result and the scratch files"):
        _plan(model, memory_available=3 * 10**9, output_free=10, one_disk=True).check()
    with pytest.raises(OutputError, match="needed for scratch files"):
        _plan(model, memory_available=3 * 10**9, output_free=10**9, scratch_free=10, one_disk=False).check()


def test_copies_of_a_model_are_told_from_others_of_its_shape(model: Path) -> None:
    copy = Path(shutil.copytree(model, model.with_name("copy")))
    os.utime(copy / "model.safetensors", (0, 0))
    source = read_source(model)
    assert read_source(copy).copies_digest == source.copies_digest
    for tensor in read_source(copy).tensors.values():
        with tensor.path.open("r+b") as stream:
            stream.seek(tensor.offset)
            stream.write(b"\1" * tensor.nbytes)
            stream.flush()
            assert read_source(copy).copies_digest != source.copies_digest, tensor.name
            stream.seek(tensor.offset)
            stream.write(b"\0" * tensor.nbytes)


def test_a_quantized_or_cut_model_is_refused(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "modelopt"}}))
    with pytest.raises(ConfigurationError, match="quantized already"):
        read_source(model)
    (model / "config.json").write_text(json.dumps(config))
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(InputUnreadableError, match="shard-truncated"):
        read_source(model)


def test_layers_are_dealt_in_turn_evenly_or_as_wanted() -> None:
    assert deal_layers(5, 2, ()) == [0, 1, 0, 1, 0]
    assert deal_layers(4, 2, (1, 3)) == [1, 0, 1, 1]
    assert [deal_layers(88, 2, (40, 48)).count(one) for one in (0, 1)] == [40, 48]
    with pytest.raises(UsageError, match="makes 4 layers, the model has 5"):
        deal_layers(5, 2, (2, 2))
    with pytest.raises(UsageError, match="cannot be spread"):
        deal_layers(2, 3, ())


def test_the_command_says_the_plan_and_refuses(model: Path) -> None:
    words = ["quantize", str(model), str(model.parent / "out"), "--plan", "--json", "--samples", "4", "--length", "10"]
    done = CliRunner().invoke(app, words)
    assert json.loads(done.stdout)["layers"] == LAYERS
    assert done.exit_code == 0
    refused = CliRunner().invoke(app, [*words, "--memory", "1"])
    assert isinstance(refused.exception, ConfigurationError)


def test_the_time_is_told_by_an_earlier_run_of_this_machine(model: Path) -> None:
    report = model.parent / "other.report.json"
    rate = {"flop_per_second": 1000.0, "host": os.uname().nodename, "layers": 3}
    about = {"architecture": "LlamaForCausalLM", "device": "cpu", "nodes": [], "rate": rate}
    words = ["quantize", str(model), str(model.parent / "out"), "--plan", "--samples", "4", "--length", "10"]
    assert "not known" in CliRunner().invoke(app, words).stdout
    report.write_text(json.dumps(about))
    timed = [*words, "--time-from", str(report)]
    plan = json.loads(CliRunner().invoke(app, [*timed, "--json"]).stdout)
    assert plan["flop"] == 2 * LAYERS * 64 * HIDDEN * 4 * 10
    assert plan["seconds"] == plan["flop"] / 1000
    assert "3 layers of LlamaForCausalLM on cpu" in " ".join(CliRunner().invoke(app, timed).stdout.split())
    report.write_text(json.dumps({**about, "rate": {**rate, "host": "elsewhere"}}))
    assert "was measured on elsewhere" in str(CliRunner().invoke(app, timed).exception)
    report.write_text(json.dumps({**about, "rate": None}))
    assert isinstance(CliRunner().invoke(app, timed).exception, InputUnreadableError)
    assert isinstance(CliRunner().invoke(app, [one for one in timed if one != "--plan"]).exception, UsageError)


def test_the_work_of_a_mixture_is_that_of_the_experts_in_use(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "num_experts": 8, "num_experts_per_tok": 2}))
    weights = {
        f"model.layers.{layer}.mlp.experts.0.up_proj.weight": np.zeros((64, HIDDEN), np.float16) for layer in range(3)
    }
    save_file(weights, model / "model.safetensors")
    assert _plan(model).flop == 2 * 3 * 64 * HIDDEN * 4 * 10 / 4


def _on_nodes(model: Path, **changes: Any) -> Plan:  # noqa: ANN401
    options = Options(source=model, output=model.parent / "out", calibration=Calibration(data="", samples=4, length=10))
    plan = make_plan(read_source(model), dataclasses.replace(options, nodes=Nodes(address="auto")))
    return dataclasses.replace(plan, memory_available=10**10, **changes)


def test_nodes_have_disks_of_their_own_and_here_is_what_a_resumed_run_needs(model: Path) -> None:
    plan = _on_nodes(model)
    states = 4 * 10 * HIDDEN * 2
    assert plan.scratch == 3 * states + 2 * plan.largest_layer
    assert plan.kept == 2 * states
    dataclasses.replace(plan, one_disk=True, output_free=plan.output + 2 * states).check()
    with pytest.raises(OutputError, match="result and the scratch files"):
        dataclasses.replace(plan, one_disk=True, output_free=plan.output + 2 * states - 1).check()
    with pytest.raises(OutputError, match="needed for scratch files"):
        dataclasses.replace(plan, one_disk=False, scratch_free=2 * states - 1).check()


def test_what_crosses_the_network_in_all(model: Path) -> None:
    """The states between two layers, and those that are kept where the result is."""
    plan = _on_nodes(model, layers=88, hidden_states=10)
    assert plan.save_every == 8
    assert [layer for layer in range(88) if plan.saves(layer)] == list(range(8, 88, 8))
    assert plan.moved == (87 + 10) * 10


def test_attention_may_be_stored_in_another_way(model: Path) -> None:
    projection = np.zeros((HIDDEN, HIDDEN), np.float16)
    save_file(
        {f"model.layers.{one}.self_attn.o_proj.weight": projection for one in range(3)}, model / "model.safetensors"
    )
    sizes = {one: _plan(model, Recipe(experts_only=True, attention=one)).output for one in (None, *Attention)}
    weights = 3 * HIDDEN * HIDDEN
    assert sizes == {None: 2 * weights, "nvfp4": weights * 9 // 16, "fp8": weights, "bf16": 2 * weights}


def test_without_its_environment_the_command_says_how_to_make_it(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    data = model.parent / "x.jsonl"
    data.touch()
    done = CliRunner().invoke(app, ["quantize", str(model), str(model.parent / "out"), "--data", str(data)])
    assert "requirements/image-0.33.0.txt" in str(done.exception)
    assert not (model.parent / "out").exists()


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        (["--data", "nowhere.jsonl"], InputUnreadableError, "nowhere.jsonl does not exist"),
        (["--ray", "auto", "--shard-layers", "1,1"], UsageError, "makes 2 layers, the model has 3"),
        (["--ray", "auto", "--actors", "4"], UsageError, "cannot be spread over 4 actors"),
    ],
)
def test_what_the_run_would_refuse_the_plan_refuses(
    model: Path, options: list[str], error: type[Exception], said: str
) -> None:
    done = CliRunner().invoke(app, ["quantize", str(model), str(model.parent / "out"), "--plan", *options])
    assert isinstance(done.exception, error)
    assert said in str(done.exception)


def test_the_result_needs_a_folder_of_its_own(model: Path) -> None:
    file = model.parent / "file"
    file.touch()
    for output, said in ((model, "the model is there"), (file, "is a file")):
        done = CliRunner().invoke(app, ["quantize", str(model), str(output), "--plan"])
        assert isinstance(done.exception, UsageError)
        assert said in str(done.exception)


def test_options_of_ray_need_ray(model: Path) -> None:
    done = CliRunner().invoke(app, ["quantize", str(model), "out", "--shard-layers", "1,2"])
    assert isinstance(done.exception, UsageError)


@pytest.mark.parametrize(
    ("name", "said"), [("Qwen/Qwen3-32B", "hf download Qwen/Qwen3-32B --local-dir FOLDER"), ("/models/x", "mounted")]
)
def test_a_model_that_is_no_folder_is_told_how_to_become_one(name: str, said: str) -> None:
    with pytest.raises(InputUnreadableError, match=f"{name} is not a folder") as refused:
        read_source(Path(name))
    assert said in str(refused.value)
