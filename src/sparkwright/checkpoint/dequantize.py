"""What the stored bytes mean: the numeric reference for every encoding, in numpy.

NVFP4: two E2M1 values a byte, the first in the low half; each block of 16 along the input has an E4M3 scale, and
the tensor one global scale: a factor in modelopt's files, a divisor in compressed-tensors'. A zero keeps its sign,
which modelopt's own reader drops. MXFP4: blocks of 32 with a power of two (E8M0) and no global scale.
"""

from collections.abc import Iterator
from typing import Any, Final

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from sparkwright.checkpoint import encodings
from sparkwright.checkpoint.headers import Tensor
from sparkwright.checkpoint.modules import Module
from sparkwright.checkpoint.structure import block_grid
from sparkwright.errors import InputUnreadableError

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

E2M1: Final[Floats] = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], dtype=np.float32)

_DTYPES: Final[dict[str, Any]] = {
    "BF16": ml_dtypes.bfloat16,
    "F16": np.float16,
    "F32": np.float32,
    "F64": np.float64,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
    "U8": np.uint8,
}
_CHUNK_BYTES: Final = 1 << 24


def unpack_e2m1(packed: Bytes) -> Floats:
    """The E2M1 values of packed bytes; the last dimension doubles."""
    values = np.empty((*packed.shape[:-1], packed.shape[-1] * 2), dtype=np.float32)
    values[..., 0::2] = E2M1[packed & 0x0F]
    values[..., 1::2] = E2M1[packed >> 4]
    return values


def nvfp4(packed: Bytes, block_scale: Floats, global_scale: np.float32, *, divisor: bool) -> Floats:
    """Weights of NVFP4: a block's scale is first made whole with the global one, as both producers do."""
    scale: Floats = block_scale / global_scale if divisor else block_scale * global_scale
    return unpack_e2m1(packed) * np.repeat(scale, encodings.MODELOPT_NVFP4.block, axis=-1)


def mxfp4(packed: Bytes, block_scale: Floats) -> Floats:
    """Weights of MXFP4, whose block scales are powers of two."""
    spread: Floats = np.repeat(block_scale, encodings.MODELOPT_MXFP4.block, axis=-1)
    return unpack_e2m1(packed) * spread


def read(tensor: Tensor, start: int = 0, count: int | None = None) -> NDArray[Any]:
    """Elements of a tensor, flat, in their own type.

    Raises:
        InputUnreadableError: the file ends before them, or cannot be read.
    """
    dtype = np.dtype(_DTYPES[tensor.dtype])
    count = tensor.elements - start if count is None else count
    try:
        with tensor.path.open("rb") as stream:
            stream.seek(tensor.offset + start * dtype.itemsize)
            content = stream.read(count * dtype.itemsize)
    except OSError as error:
        raise InputUnreadableError(f"{tensor.path} cannot be read: {error.strerror or error}") from error
    if len(content) < count * dtype.itemsize:
        raise InputUnreadableError(
            f"{tensor.path} ends within {tensor.name}",
            cause="the file was cut off, or is still being written",
            remedy="finish the copy or download",
        )
    return np.frombuffer(content, dtype=dtype)


def read_floats(tensor: Tensor, start: int = 0, count: int | None = None) -> Floats:
    """Elements of a tensor, flat, as float32."""
    return read(tensor, start, count).astype(np.float32)


def _block_scales(tensor: Tensor, start: int, count: int) -> Floats:
    """Block scales as float32; bytes are exponents of two, as safetensors had no name for E8M0 once."""
    stored = read(tensor, start, count)
    return (stored.view(ml_dtypes.float8_e8m0fnu) if tensor.dtype == "U8" else stored).astype(np.float32)


def readable(tensor: Tensor) -> bool:
    """Whether the type is one that can be turned into floats here."""
    return tensor.dtype in _DTYPES


def chunks(tensor: Tensor) -> Iterator[Bytes]:
    """The bytes of a tensor in pieces of bounded size."""
    raw = Tensor(
        name=tensor.name,
        dtype="U8",
        shape=(tensor.nbytes,),
        path=tensor.path,
        offset=tensor.offset,
        nbytes=tensor.nbytes,
    )
    for start in range(0, tensor.nbytes, _CHUNK_BYTES):
        yield read(raw, start, min(_CHUNK_BYTES, tensor.nbytes - start))


def can_dequantize(module: Module) -> bool:
    """Whether `rows` knows this module's layout and has all it needs."""
    encoding = module.encoding
    if (
        encoding is None
        or module.weight is None
        or not module.shape
        or not module.values
        or not readable(module.weight)
    ):
        return False
    if encoding is encodings.FLOAT:
        return True
    needed = [module.parts.get(part) for part in (encoding.block_scale, encoding.global_scale) if part is not None]
    known = encoding is not encodings.UNKNOWN and all(one is not None and readable(one) for one in needed)
    return known and (len(module.shape) == 2 or encoding is encodings.BLOCKS_MXFP4) and _blocks_fit(module)


def _blocks_fit(module: Module) -> bool:
    encoding = module.encoding
    if encoding is None or encoding.block_scale is None:
        return False
    scale, width = module.parts[encoding.block_scale], module.shape[-1]
    if encoding.bits == 4:
        return width % encoding.block == 0 and scale.elements * encoding.block == module.values
    if encoding.block:
        return scale.shape == block_grid(module)
    return scale.elements in (1, module.shape[0])


def rows(module: Module, first: int, count: int) -> Floats:
    """Rows of a module's weight as float32; leading dimensions count as rows. Ask `can_dequantize` first."""
    encoding, weight = module.encoding, module.weight
    if encoding is None or weight is None:
        raise ValueError(f"{module.name} has no weight")
    width = module.shape[-1]
    if encoding is encodings.FLOAT:
        return read_floats(weight, first * width, count * width).reshape(count, width)
    scale = module.parts[encoding.block_scale or ""]
    if encoding.bits == 4:
        packed = read(weight, first * width // 2, count * width // 2).view(np.uint8).reshape(count, width // 2)
        blocks_of_row = width // encoding.block
        blocks = _block_scales(scale, first * blocks_of_row, count * blocks_of_row).reshape(count, blocks_of_row)
        if encoding.global_scale is None:
            return mxfp4(packed, blocks)
        whole = read_floats(module.parts[encoding.global_scale])[0]
        return nvfp4(packed, blocks, whole, divisor=encoding.global_is_divisor)
    values = read_floats(weight, first * width, count * width).reshape(count, width)
    if encoding.block:
        tall, across = encoding.block_rows, scale.shape[1]
        low, high = first // tall, -(-(first + count) // tall)
        grid = _block_scales(scale, low * across, (high - low) * across).reshape(high - low, across)
        spread = np.repeat(np.repeat(grid, tall, axis=0), encoding.block, axis=1)
        shifted = first - low * tall
        blockwise: Floats = values * spread[shifted : shifted + count, :width]
        return blockwise
    factor = read_floats(scale) if scale.elements == 1 else read_floats(scale, first, count)
    scaled: Floats = values * factor.reshape(-1, 1)
    return scaled
