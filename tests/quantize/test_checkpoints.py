"""Checkpoints of real tools: nothing is found in good ones, and their weights are read as the tools read them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.numpy import load_file

from sparkwright.checkpoint.checkpoint import read_checkpoint
from sparkwright.checkpoint.dequantize import rows
from sparkwright.checkpoint.inspection import format_name
from sparkwright.checkpoint.repair import Actions, repair_into
from sparkwright.checkpoint.verify import verify

if TYPE_CHECKING:
    from tests.quantize.conftest import Models, Warm

ARCHITECTURES = ("llama", "mistral", "qwen3", "qwen3_moe", "qwen2_moe")
MODELOPT = "modelopt NVFP4"
PACKED = "compressed-tensors nvfp4-pack-quantized"
# What the relative L2 error of Gaussian weights must be; another order of values or a scale inverted is far outside.
LOWEST, HIGHEST = 0.08, 0.12

Make = Callable[[str], Path]


def _maker(warm: "Warm", models: "Models", folder: Path, *options: str) -> Make:
    """Checkpoints by architecture, each made once."""

    def make(architecture: str) -> Path:
        made = folder / architecture
        if not made.exists():
            warm.run("make_checkpoint.py", models(architecture), made, *options)
        return made

    return make


@pytest.fixture(scope="module")
def modelopt(quantizing: "Warm", models: "Models", tmp_path_factory: pytest.TempPathFactory) -> Make:
    return _maker(quantizing, models, tmp_path_factory.mktemp("modelopt"))


@pytest.fixture(scope="module")
def old_modelopt(modelopt_043: "Warm", models: "Models", tmp_path_factory: pytest.TempPathFactory) -> Make:
    return _maker(modelopt_043, models, tmp_path_factory.mktemp("modelopt-0.43"))


@pytest.fixture(scope="module")
def packed(llm_compressor: "Warm", models: "Models", tmp_path_factory: pytest.TempPathFactory) -> Make:
    return _maker(llm_compressor, models, tmp_path_factory.mktemp("packed"), "--tool", "llm-compressor")


def _is_sound(root: Path, base: Path, form: str) -> None:
    result = verify(root, against=base, sample=0)
    assert result.findings == ()
    assert result.not_compared == ()
    assert format_name(result.checkpoint) == form
    quantized = [one for one in result.differences if one.encoding != "unquantized"]
    assert len(quantized) >= 28
    assert all(LOWEST < one.error < HIGHEST for one in quantized)
    assert all(one.error == 0 for one in result.differences if one not in quantized)


def _weights(root: Path, reference: Path) -> Iterator[tuple[str, "np.ndarray", "np.ndarray"]]:
    modules = read_checkpoint(root).modules
    expected = load_file(reference)
    assert len(expected) == sum(module.is_quantized for module in modules.values()) > 0
    for name, values in expected.items():
        yield name, rows(modules[name], 0, modules[name].shape[0]), values


def _is_read_like(warm: "Warm", root: Path, scratch: Path, *, signs_of_zeros: bool) -> None:
    reference = scratch / "reference.safetensors"
    warm.run("dequantize.py", root, reference)
    for name, found, expected in _weights(root, reference):
        # modelopt's reader gives +0 where the bits say -0; a zero added turns -0 into +0.
        zero = np.float32(-0.0 if signs_of_zeros else 0)
        assert (found + zero).tobytes() == (expected + zero).tobytes(), name


@pytest.mark.quantizes
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nothing_is_found_in_a_checkpoint_of_modelopt(modelopt: Make, models: "Models", architecture: str) -> None:
    _is_sound(modelopt(architecture), models(architecture), MODELOPT)


@pytest.mark.quantizes
def test_weights_are_read_as_modelopt_reads_them(modelopt: Make, quantizing: "Warm", tmp_path: Path) -> None:
    _is_read_like(quantizing, modelopt("llama"), tmp_path, signs_of_zeros=False)


@pytest.mark.quantizes
def test_a_calibration_that_never_ran_is_found(quantizing: "Warm", models: "Models", tmp_path: Path) -> None:
    """modelopt without data measures the weights, ends the calibration, and exports without a word."""
    root = tmp_path / "made"
    quantizing.run("make_checkpoint.py", models("llama"), root, "--uncalibrated")
    assert [one.rule.code for one in verify(root).findings] == ["input-scale-missing"]
    repair_into(root, tmp_path / "ones", Actions(set_input_scale=1.0))
    assert [one.rule.code for one in verify(tmp_path / "ones").findings] == ["input-scale-ones"]


@pytest.mark.parametrize("architecture", ["llama", "qwen3_moe"])
def test_nothing_is_found_in_a_checkpoint_of_an_older_modelopt(
    old_modelopt: Make, modelopt_043: "Warm", models: "Models", tmp_path: Path, architecture: str
) -> None:
    root = old_modelopt(architecture)
    _is_sound(root, models(architecture), MODELOPT)
    _is_read_like(modelopt_043, root, tmp_path, signs_of_zeros=False)


@pytest.mark.parametrize("architecture", ["llama", "qwen3_moe"])
def test_nothing_is_found_in_a_checkpoint_of_llm_compressor(
    packed: Make, llm_compressor: "Warm", models: "Models", tmp_path: Path, architecture: str
) -> None:
    root = packed(architecture)
    _is_sound(root, models(architecture), PACKED)
    _is_read_like(llm_compressor, root, tmp_path, signs_of_zeros=True)


def test_llm_compressor_without_activations_is_weights_only(
    llm_compressor: "Warm", models: "Models", tmp_path: Path
) -> None:
    root = tmp_path / "made"
    llm_compressor.run("make_checkpoint.py", models("llama"), root, "--tool", "llm-compressor", "--weights-only")
    _is_sound(root, models("llama"), f"{PACKED}, weights only (W4A16)")


def test_the_gate_that_llm_compressor_quantizes_is_found(packed: Make) -> None:
    """Its usual exclusion, `re:.*mlp.gate$`, does not hold for the gate of a shared expert."""
    assert [one.rule.code for one in verify(packed("qwen2_moe")).findings] == ["gate-quantized"]
