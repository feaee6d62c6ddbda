"""The numeric reference against independent definitions of the formats."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import save_file

from sparkwright.checkpoint.checkpoint import read_checkpoint
from sparkwright.checkpoint.comparison import bound
from sparkwright.checkpoint.dequantize import mxfp4, nvfp4, rows, unpack_e2m1
from sparkwright.checkpoint.modules import Module, group

if TYPE_CHECKING:
    from tests.unit.checkpoint.conftest import Model

Make = Callable[[str], "Model"]


def test_every_byte_unpacks_low_half_first() -> None:
    every = np.arange(256, dtype=np.uint8)
    found = unpack_e2m1(every[:, None])
    low = (every & 15).view(ml_dtypes.float4_e2m1fn).astype(np.float32)
    high = (every >> 4).view(ml_dtypes.float4_e2m1fn).astype(np.float32)
    assert found[:, 0].tobytes() == low.tobytes()
    assert found[:, 1].tobytes() == high.tobytes()


@settings(max_examples=30, deadline=None)
@given(
    data=st.binary(min_size=64, max_size=64),
    scales=st.binary(min_size=8, max_size=8),
    whole=st.floats(2**-20, 2**20, width=32),
)
def test_nvfp4_value_by_value(data: bytes, scales: bytes, whole: float) -> None:
    packed = np.frombuffer(data, dtype=np.uint8).reshape(2, 32)
    blocks = (
        (np.frombuffer(scales, dtype=np.uint8) & 0x7E).view(ml_dtypes.float8_e4m3fn).reshape(2, 4).astype(np.float32)
    )
    factor = np.float32(whole)
    magnitudes = (0, 0.5, 1, 1.5, 2, 3, 4, 6)
    for divisor in (False, True):
        found = nvfp4(packed, blocks, factor, divisor=divisor)
        for row in range(2):
            for column in range(64):
                code = int(packed[row, column // 2]) >> (4 * (column % 2)) & 15
                value = np.float32(magnitudes[code & 7] * (-1 if code & 8 else 1))
                scale = blocks[row, column // 16] / factor if divisor else blocks[row, column // 16] * factor
                assert found[row, column] == value * scale


def _powers(exponents: list[list[int]]) -> NDArray[np.float32]:
    return np.array([[math.nan if one == 255 else 2.0 ** (one - 127) for one in row] for row in exponents], np.float32)


def test_mxfp4_scales_are_powers_of_two() -> None:
    packed = np.full((1, 32), 0x22, dtype=np.uint8)  # every value is 1
    found = mxfp4(packed, _powers([[127, 120]]))
    assert set(found[0, :32]) == {1.0}
    assert set(found[0, 32:]) == {2.0**-7}
    assert np.isnan(mxfp4(packed, _powers([[255, 127]]))[0, :32]).all()


def _module(tmp_path: Path, **parts: NDArray[Any]) -> Module:
    save_file({f"m.{name}": value for name, value in parts.items()}, tmp_path / "m.safetensors")
    return group(read_checkpoint(tmp_path).tensors.values())["m"]


def test_fp8_by_tensor_row_and_block(tmp_path: Path) -> None:
    values = np.arange(256 * 200, dtype=np.float32).reshape(256, 200) % 13 - 6
    weight = values.astype(ml_dtypes.float8_e4m3fn)
    one = _module(tmp_path, weight=weight, weight_scale=np.array(0.5, dtype=np.float32))
    assert (rows(one, 3, 4) == values[3:7] * 0.5).all()
    mistral = _module(tmp_path, weight=weight, weight_scale_inv=np.array(0.5, dtype=np.float32))
    assert (rows(mistral, 3, 4) == values[3:7] * 0.5).all()
    by_row = np.linspace(0.5, 2, 256, dtype=np.float32)[:, None]
    each = _module(tmp_path, weight=weight, weight_scale=by_row)
    assert (rows(each, 100, 50) == values[100:150] * by_row[100:150]).all()
    grid = np.array([[1, 2], [4, 8]], dtype=np.float32)
    blocks = _module(tmp_path, weight=weight, weight_scale_inv=grid)
    found = rows(blocks, 120, 20)
    assert (found[:8, :128] == values[120:128, :128]).all()
    assert (found[:8, 128:] == values[120:128, 128:] * 2).all()
    assert (found[8:, :128] == values[128:140, :128] * 4).all()
    assert (found[8:, 128:] == values[128:140, 128:] * 8).all()


def test_mxfp8(tmp_path: Path) -> None:
    values = np.arange(4 * 64, dtype=np.float32).reshape(4, 64) % 7
    weight = values.astype(ml_dtypes.float8_e4m3fn)
    exponents = np.array([[127, 128], [126, 125], [127, 127], [130, 120]], dtype=np.uint8)
    module = _module(tmp_path, weight=weight, weight_scale=exponents)
    expected = values * np.repeat(_powers(exponents.tolist()), 32, axis=1)
    assert (rows(module, 1, 3) == expected[1:]).all()


def test_stacked_mxfp4_experts(tmp_path: Path) -> None:
    blocks = np.random.default_rng(1).integers(0, 256, (2, 6, 3, 16), dtype=np.uint8)
    scales = np.random.default_rng(2).integers(120, 130, (2, 6, 3), dtype=np.uint8)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    save_file({f"{name}_blocks": blocks, f"{name}_scales": scales}, tmp_path / "m.safetensors")
    module = read_checkpoint(tmp_path).modules[name]
    assert module.shape == (2, 6, 96)
    assert module.stacked_experts == 2
    whole = mxfp4(blocks.reshape(12, 48), _powers(scales.reshape(12, 3).tolist()))
    assert (rows(module, 5, 4) == whole[5:9]).all()


@pytest.mark.parametrize("kind", ["modelopt", "packed"])
def test_gaussian_weights_are_as_far_as_nvfp4_makes_them(make: Make, tmp_path: Path, kind: str) -> None:
    quantized = read_checkpoint(make(kind).write(tmp_path / "model"))
    base = read_checkpoint(make("base").write(tmp_path / "base"))
    for name, module in quantized.modules.items():
        if module.is_quantized:
            height = module.shape[0]
            mine, theirs = rows(module, 0, height), rows(base.modules[name], 0, height)
            error = np.linalg.norm(mine - theirs) / np.linalg.norm(theirs)
            assert module.encoding is not None
            assert 0.08 < error < bound(module.encoding)
