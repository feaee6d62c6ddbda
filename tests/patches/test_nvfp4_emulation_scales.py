"""nvfp4-emulation-scales: the emulated product is that of the dequantized tensors, for both checkpoint formats."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.patches.upstream_code import patched_files

from sparkwright.run import run

pytestmark = pytest.mark.sources

FORMATS = ("modelopt", "compressed-tensors")
ROWS = (256, 96)
"""A multiple of 128, as a swizzled layout wants it, and none."""

ORACLE = """
import importlib
import itertools
import json
import sys
import types

import torch

trees, width = sys.argv[1:], 64
for name in ("", ".model_executor", ".model_executor.layers", ".model_executor.layers.quantization",
             ".model_executor.layers.quantization.utils"):
    package = types.ModuleType("vllm" + name)
    package.__path__ = [tree + "/vllm" + name.replace(".", "/") for tree in trees]
    sys.modules[package.__name__] = package
emulation = importlib.import_module("vllm.model_executor.layers.quantization.utils.nvfp4_emulation_utils")

errors = {}
for checkpoint, rows in itertools.product(("modelopt", "compressed-tensors"), (256, 96)):
    # A checkpoint: packed E2M1, low nibble first; E4M3 scale per 16 values; one global scale.
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (rows, width), generator=generator, dtype=torch.uint8)
    packed = codes[:, 0::2] | (codes[:, 1::2] << 4)
    block_scales = (torch.rand(rows, width // 16, generator=generator) * 400 + 1).to(torch.float8_e4m3fn)
    # ModelOpt stores a factor, compressed-tensors a divisor; vLLM makes factors of both at load.
    stored = {"modelopt": 0.00037, "compressed-tensors": 1 / 0.00037}[checkpoint]
    factor = torch.tensor(stored if checkpoint == "modelopt" else 1.0 / stored, dtype=torch.float32)

    table = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=torch.float64)
    weight = table[(codes & 7).long()] * torch.where(codes >= 8, -1.0, 1.0)
    weight = weight * block_scales.double().repeat_interleave(16, dim=1) * factor.double()

    # Activations that quantize without loss, so that only the weight is in question.
    x = table[torch.randint(0, 8, (5, width), generator=generator)]
    x[:, ::16] = 6.0
    x[1] = -x[1]
    expected = x @ weight.T
    try:
        got = emulation.run_nvfp4_emulations(
            x=x.float(),
            input_global_scale=torch.tensor(1.0),
            weight=packed,
            weight_scale_swizzled=block_scales,
            weight_global_scale=factor,
        ).double()
        errors[f"{checkpoint} {rows}"] = ((got - expected).norm() / expected.norm()).item()
    except RuntimeError as problem:
        errors[f"{checkpoint} {rows}"] = str(problem)
print(json.dumps(errors))
"""


def _relative_errors(build_python: Path, *trees: Path) -> dict[str, float | str]:
    """Error of the real emulation, from the first tree that has it, against a float64 oracle, or why it failed."""
    answer = run([build_python, "-c", ORACLE, *trees])
    errors: dict[str, float | str] = json.loads(answer.splitlines()[-1])
    assert set(errors) == {f"{checkpoint} {rows}" for checkpoint in FORMATS for rows in ROWS}
    return errors


@pytest.mark.parametrize("version", ["0.16.0", "0.19.1"])
def test_the_product_is_right_for_both_conventions(
    version: str, vllm_tree: Callable[[str], Path], build_python: Path, tmp_path: Path
) -> None:
    before = vllm_tree(version)
    garbage = _relative_errors(build_python, before)
    for checkpoint in FORMATS:
        error = garbage[f"{checkpoint} 256"]
        assert isinstance(error, float)
        assert error > 1000
        assert isinstance(garbage[f"{checkpoint} 96"], str)

    after = patched_files(before, version, "nvfp4-emulation-scales", tmp_path)
    for error in _relative_errors(build_python, after, before).values():
        assert isinstance(error, float)
        assert error < 1e-6
