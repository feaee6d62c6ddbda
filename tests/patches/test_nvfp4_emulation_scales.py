"""nvfp4-emulation-scales: the emulated product is that of the dequantized tensors, for both checkpoint formats."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.patches.upstream_code import patched_files

from sparkwright.run import run

pytestmark = pytest.mark.sources

ORACLE = """
import importlib
import json
import sys
import types

import torch

checkpoint, rows, trees, width = sys.argv[1], int(sys.argv[2]), sys.argv[3:], 64
for name in ("", ".model_executor", ".model_executor.layers", ".model_executor.layers.quantization",
             ".model_executor.layers.quantization.utils"):
    package = types.ModuleType("vllm" + name)
    package.__path__ = [tree + "/vllm" + name.replace(".", "/") for tree in trees]
    sys.modules[package.__name__] = package
emulation = importlib.import_module("vllm.model_executor.layers.quantization.utils.nvfp4_emulation_utils")

# A checkpoint: packed E2M1, low nibble first; E4M3 scale per 16 values; one global scale.
generator = torch.Generator().manual_seed(0)
codes = torch.randint(0, 16, (rows, width), generator=generator, dtype=torch.uint8)
packed = codes[:, 0::2] | (codes[:, 1::2] << 4)
block_scales = (torch.rand(rows, width // 16, generator=generator) * 400 + 1).to(torch.float8_e4m3fn)
stored = {"modelopt": 0.00037, "compressed-tensors": 1 / 0.00037}[checkpoint]
# What vLLM makes of it at load: modelopt keeps the factor, compressed-tensors inverts its divisor.
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
    error = ((got - expected).norm() / expected.norm()).item()
except RuntimeError as problem:
    error = str(problem)
print(json.dumps(error))
"""


def _relative_error(build_python: Path, checkpoint: str, rows: int, *trees: Path) -> float | str:
    """Error of the real emulation, from the first tree that has it, against a float64 oracle, or why it failed."""
    answer = run([build_python, "-c", ORACLE, checkpoint, str(rows), *trees])
    error: float | str = json.loads(answer.splitlines()[-1])
    return error


@pytest.mark.parametrize("checkpoint", ["modelopt", "compressed-tensors"])
@pytest.mark.parametrize("version", ["0.16.0", "0.19.1"])
def test_the_product_is_right_for_both_conventions(
    version: str,
    checkpoint: str,
    vllm_tree: Callable[[str], Path],
    build_python: Path,
    tmp_path: Path,
) -> None:
    before = vllm_tree(version)
    garbage = _relative_error(build_python, checkpoint, 256, before)
    assert isinstance(garbage, float)
    assert garbage > 1000
    assert isinstance(_relative_error(build_python, checkpoint, 96, before), str), "rows are no multiple of 128"

    after = patched_files(before, version, "nvfp4-emulation-scales", tmp_path)
    for rows in (256, 96):
        error = _relative_error(build_python, checkpoint, rows, after, before)
        assert isinstance(error, float)
        assert error < 1e-6
