"""NVFP4 in numpy: float64 where a value is judged, float32 step by step where bits are."""

from typing import Any, Final

import ml_dtypes
import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
E4M3: Final = np.dtype(ml_dtypes.float8_e4m3fn)
E2M1_VALUES: Final = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def unpack(packed: Array) -> Array:
    """The codes of packed bytes, the lower nibble first."""
    return np.stack((packed & 15, packed >> 4), -1).reshape(*packed.shape[:-1], -1)


def dequantize(packed: Array, scales: Array) -> Array:
    """Weights [n, k] in float64, without the global scale: of codes [n, k / 2] and linear scales [n, k / 16]."""
    return np.asarray(E2M1_VALUES[unpack(packed)] * np.repeat(scales.view(E4M3).astype(np.float64), 16, axis=1))


def tile(scales: Array, fill: int = 0) -> Array:
    """Linear scales' bytes in tiles of 128 rows by 4 blocks; the padding is `fill`."""
    rows, blocks = scales.shape
    padded = np.full((-(-rows // 128) * 128, -(-blocks // 4) * 4), fill, np.uint8)
    padded[:rows, :blocks] = scales
    tiles = padded.reshape(padded.shape[0] // 128, 4, 32, padded.shape[1] // 4, 4)
    return np.ascontiguousarray(tiles.transpose(0, 3, 2, 1, 4)).reshape(padded.shape)


def gemv(x: Array, packed: Array, scales: Array, global_scale: float, *, divides: bool = False) -> tuple[Array, Array]:
    """y in float64, and how far float32 sums and a rounding to x's type may be from it."""
    weights = dequantize(packed, scales)
    factor = 1 / np.float64(np.float32(global_scale)) if divides else np.float64(np.float32(global_scale))
    wide = x.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        y = wide @ weights.T * factor
        magnitude = np.abs(wide) @ np.abs(weights).T * abs(factor)
    # A lane adds sixteen products, then two blocks a chunk; five steps join the lanes, one the warps, one scales.
    operations = 16 + 2 * (x.shape[1] / 512 + 1) + 8
    info: Any = ml_dtypes.finfo(x.dtype)  # type: ignore[no-untyped-call]
    bound = magnitude * operations * 2.0**-24 + np.maximum(
        np.abs(y) * float(info.eps) / 2, float(info.smallest_subnormal)
    )
    return y, bound * 1.001


def pack(codes: Array) -> Array:
    """Two codes to a byte, the first in the lower nibble."""
    return np.asarray((codes[..., 0::2] | codes[..., 1::2] << 4).astype(np.uint8))


def _to_e2m1(values: Array) -> Array:
    """The nearest codes, ties to even, NaN to 7: the rule that tests/native/test_e2m1.py proves of the header."""
    with np.errstate(all="ignore"):
        codes = values.astype(ml_dtypes.float4_e2m1fn).view(np.uint8) & 15
    return np.asarray(np.where(np.isnan(values), np.uint8(7), codes))


def _to_e4m3(values: Array) -> Array:
    """Bytes; larger values become 448."""
    with np.errstate(all="ignore"):
        finite = np.where(values > 448, np.float32(448), values)
        return np.asarray(finite.astype(E4M3).view(np.uint8))


def quantize_as_vllm(x: Array, global_scale: float) -> tuple[Array, Array]:
    """The rule of vLLM's scaled_fp4_quant with a correctly rounded reciprocal: packed codes and scales' bytes."""
    g, one, six = np.float32(global_scale), np.float32(1), np.float32(6)
    values = x.astype(np.float32).reshape(x.shape[0], -1, 16)
    with np.errstate(all="ignore"):
        # The largest number; NaN only where there is none. (np.fmax does not pass over signalling NaN.)
        largest = np.max(np.where(np.isnan(values), np.float32(0), np.abs(values)), axis=-1)
        largest = np.where(np.isnan(values).all(axis=-1), np.float32(np.nan), largest)
        scales = _to_e4m3(g * (largest * (one / six)))
        value = scales.view(E4M3).astype(np.float32)
        multiplier = np.where(value != 0, one / (value * (one / g)), np.float32(0))
        scaled = values * multiplier[..., None]
    return pack(_to_e2m1(scaled).reshape(x.shape)), scales


def quantize_as_modelopt(x: Array, global_scale: float) -> tuple[Array, Array]:
    """The rule of modelopt's NVFP4QTensor: packed codes and scales' bytes."""
    g2 = np.float32(global_scale)
    values = x.astype(np.float32).reshape(x.shape[0], -1, 16)
    with np.errstate(all="ignore"):
        wanted = np.max(np.abs(values), axis=-1) / (np.float32(6) * g2)
        wanted = np.where(wanted == 0, np.float32(1), wanted)
        scales = _to_e4m3(np.clip(wanted, np.float32(2**-9), np.float32(448)))
        divisor = scales.view(E4M3).astype(np.float32) * g2
        scaled = values / divisor[..., None] + np.float32(0)
    return pack(_to_e2m1(scaled).reshape(x.shape)), scales
