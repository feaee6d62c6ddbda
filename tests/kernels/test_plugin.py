"""The plugin in real vLLM on a CPU, with the operators built for the CPU: what a small NVFP4 model answers."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.environments import environment
from tests.kernels.torch_side import KERNELS, variables

from sparkwright.paths import CHECKOUT
from sparkwright.run import run

pytestmark = pytest.mark.compiles
VLLM_CPU = Path(__file__).parent / "vllm_cpu"
PLUGINS = {"gb10_kernels": "gb10_kernels.vllm_plugin:register", "cpu_reference": "cpu_reference:register"}
SHORT = 3
"""The first prompts of ask.py, of at most eight tokens."""
# Measured: 0.0022 on average and 0.0080 at most, the noise of bfloat16.
CLOSE = (0.006, 0.02)
# Measured: 0.044 and 0.136. The emulation rounds the activations to NVFP4; the kernels do not.
EMULATED = (0.09, 0.3)


def _plugins(folder: Path) -> Path:
    """Metadata as an installation would leave it."""
    for name, entry in PLUGINS.items():
        information = folder / f"{name}-0.dist-info"
        information.mkdir(parents=True)
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0\n")
        (information / "entry_points.txt").write_text(f"[vllm.general_plugins]\n{name} = {entry}\n")
    return folder


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """By variant, what the model said; and the log."""
    folder = tmp_path_factory.mktemp("plugin")
    quantizing, serving = environment("quantize.txt", editable=CHECKOUT), environment("serve.txt")
    tiny, quantized = folder / "model", folder / "nvfp4"
    makers = CHECKOUT / "tests/quantize"
    offline = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HOME": str(folder), "PATH": os.environ["PATH"]}
    # A dense layer and a layer of experts.
    run([quantizing, makers / "make_model.py", tiny, "--architecture", "qwen3_moe", "--layers", "2"], env=offline)
    run([quantizing, makers / "make_checkpoint.py", tiny, quantized], env=offline)
    own = variables()
    own["PYTHONPATH"] = os.pathsep.join([str(_plugins(folder / "plugins")), own["PYTHONPATH"], str(VLLM_CPU)])
    own |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    done = subprocess.run(
        [str(serving), str(VLLM_CPU / "ask.py"), str(quantized), str(folder)],
        env={**offline, **own},
        capture_output=True,
        text=True,
        check=False,
    )
    log = done.stdout + done.stderr
    assert done.returncode == 0, log[-6000:]
    variants = ("emulated", "dequantized", "kernels")
    return {"log": log} | {name: json.loads((folder / f"{name}.json").read_text()) for name in variants}


def _difference(one: Any, other: Any) -> tuple[float, float]:  # noqa: ANN401
    """The mean and the largest difference of the log-probabilities that both name, of the short prompts."""
    differences = [
        abs(value - there[token])
        for answer, counterpart in zip(one["answers"][:SHORT], other["answers"][:SHORT], strict=True)
        for here, there in zip(answer, counterpart, strict=True)
        for token, value in here.items()
        if token in there
    ]
    assert len(differences) > 60
    return sum(differences) / len(differences), max(differences)


def test_the_kernels_answer_as_dequantized_weights_do(answers: dict[str, Any]) -> None:
    mean, most = _difference(answers["kernels"], answers["dequantized"])
    assert (mean, most) < CLOSE
    assert most < CLOSE[1]


def test_the_kernels_answer_as_vllms_emulation_within_the_rounding_of_activations(answers: dict[str, Any]) -> None:
    mean, most = _difference(answers["kernels"], answers["emulated"])
    assert mean < EMULATED[0]
    assert most < EMULATED[1]


def test_a_batch_of_more_than_eight_tokens_is_vllms_own(answers: dict[str, Any]) -> None:
    long = {name: answers[name]["answers"][-1] for name in ("kernels", "emulated", "dequantized")}
    # The last four places are the answer's; of the first of those the prefill decides too.
    prefill = {name: places[:-3] for name, places in long.items()}
    assert len(prefill["kernels"]) == 20
    assert prefill["kernels"] == prefill["emulated"]
    assert prefill["kernels"] != prefill["dequantized"]
    assert long["kernels"][-3:] != long["emulated"][-3:]


def test_every_layer_used_the_kernels(answers: dict[str, Any]) -> None:
    # Three prompts, each with its prefill and three more steps (the fourth token needs no step), and a fourth without
    # its prefill: six linear layers (two attentions of two, one dense MLP of two) and one layer of experts a step.
    assert answers["kernels"]["calls"] == {"gemv": 90, "moe_decode": 15}
    assert "gb10_kernels takes up to 8 tokens at a time" in answers["log"]
    assert "stays with vLLM's own kernel" not in answers["log"]
    assert answers["emulated"]["calls"] == {}


@pytest.fixture(scope="module")
def in_process(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What vLLM's own classes did with the plugin in one process without a model."""
    home = tmp_path_factory.mktemp("process")
    alone = {"HF_HUB_OFFLINE": "1", "HOME": str(home), "PATH": os.environ["PATH"]}
    run([environment("serve.txt"), VLLM_CPU / "layouts.py", home / "found.json"], env=alone | variables())
    return dict(json.loads((home / "found.json").read_text(encoding="utf-8")))


def test_every_layout_that_vllm_makes_is_read_as_it_is_meant(in_process: dict[str, Any]) -> None:
    """By vLLM's own classes: its linear kernels and expert backends, modelopt's and compressed-tensors' scales."""
    errors = {kind: in_process[kind] for kind in ("linear", "experts")}
    assert len(errors["linear"]) == 12
    # Each with experts of its own, and with half of them on another rank.
    assert len(errors["experts"]) == 12
    # bfloat16's rounding is 2^-9 of a value; another layout gives errors of the size of the values.
    assert {name: error for kind in errors.values() for name, error in kind.items() if error > 2**-8} == {}


def test_a_layer_whose_method_multiplies_by_itself_gets_vllms_kernel_back(in_process: dict[str, Any]) -> None:
    assert in_process["transformed"] == {"backend": "cutlass", "reads": False}


def test_the_compile_cache_keeps_graphs_with_and_without_the_kernels_apart(in_process: dict[str, Any]) -> None:
    served = in_process["switch"]["served"]
    # Of 20 tokens and of 3.
    assert {name: each["own kernel"] for name, each in served.items()} == {
        "off": [False, False],
        "on": [False, True],
        "on again": [False, True],
        "off again": [False, False],
    }
    assert {name: each["from disk"] for name, each in served.items()} == {
        "off": False,
        "on": False,
        "on again": True,
        "off again": True,
    }


def test_a_backend_that_shuts_the_kernel_out_of_linear_layers_is_told_once(in_process: dict[str, Any]) -> None:
    told = in_process["switch"]["told"]
    assert told["auto"] == []
    (line,) = told["emulation"]
    assert line.startswith("every NVFP4 linear layer: --linear-backend")
    assert "chooses EmulationNvFp4LinearKernel" in line


def test_nothing_is_offered_to_a_vllm_whose_results_may_not_depend_on_the_batch(in_process: dict[str, Any]) -> None:
    assert in_process["switch"]["changed"], "the premise: it would be"
    assert in_process["switch"]["invariant"]


def test_the_plugins_operator_has_one_graph_for_every_number_of_tokens(in_process: dict[str, Any]) -> None:
    assert in_process["switch"]["operator"] == [[20, 16], [3, 16]]


def test_the_plugin_is_an_entry_point_of_the_distribution() -> None:
    assert f'gb10_kernels = "{PLUGINS["gb10_kernels"]}"' in (KERNELS / "python/pyproject.toml").read_text()
