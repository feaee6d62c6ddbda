"""The launchers called with numpy arrays."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import ml_dtypes
import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

DTYPES: Final = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}
LAYOUTS: Final = {"linear": 0, "tiled": 1}
_MESSAGE = 4096


class RefusedError(Exception):
    """A launcher's message."""


class _Gemv(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "n", "k")),
        *((name, ctypes.c_void_p) for name in ("x", "weight", "scale", "global_scale", "y")),
        *((name, ctypes.c_int64) for name in ("weight_pitch", "scale_blocks")),
        *((name, ctypes.c_int) for name in ("activation", "layout", "global")),
    )


class _Quantize(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "k")),
        *((name, ctypes.c_void_p) for name in ("x", "global_scale", "codes", "scales")),
        *((name, ctypes.c_int) for name in ("activation", "layout", "rule")),
    )


def aligned(shape: tuple[int, ...], dtype: np.dtype[Any], fill: int = 0) -> Array:
    """An array that starts at a multiple of 16 bytes and ends where its allocation ends, so that an overrun is seen."""
    size = int(np.prod(shape)) * dtype.itemsize
    # Zeros come lazily from the system, so that arrays may be larger than the memory.
    memory = np.zeros(size, np.uint8) if fill == 0 else np.full(size, fill, np.uint8)
    assert memory.ctypes.data % 16 == 0, "malloc aligns to 16 bytes"
    return memory.view(dtype).reshape(shape)


def in_aligned(values: Array) -> Array:
    """A copy that is aligned."""
    copy = aligned(values.shape, values.dtype)
    copy[...] = values
    return copy


class Launchers:
    """The launchers of a library that was built through kernels/shim."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))

    def _call(self, name: str, problem: ctypes.Structure) -> None:
        message = ctypes.create_string_buffer(_MESSAGE)
        getattr(self._library, name)(ctypes.byref(problem), message, ctypes.c_size_t(_MESSAGE))
        if message.value:
            raise RefusedError(message.value.decode())

    def gemv(
        self,
        x: Array,
        weight: Array,
        scale: Array,
        global_scale: float,
        *,
        n: int | None = None,
        layout: str = "linear",
        divides: bool = False,
        scale_blocks: int | None = None,
        out: Array | None = None,
    ) -> Array:
        """y = x W^T. `weight` is [n, at least k / 2] bytes, `scale` E4M3 bytes as the layout has them."""
        rows, k = x.shape
        n = weight.shape[0] if n is None else n
        x, scalar = in_aligned(x), np.array([global_scale], np.float32)
        y = aligned((rows, n), x.dtype, fill=0xAA) if out is None else out
        names = {**dict.fromkeys(DTYPES.values(), 0), DTYPES["float16"]: 1}
        self._call(
            "gemv",
            _Gemv(
                rows=rows,
                n=n,
                k=k,
                x=x.ctypes.data,
                weight=weight.ctypes.data,
                scale=scale.ctypes.data,
                global_scale=scalar.ctypes.data,
                y=y.ctypes.data,
                weight_pitch=weight.shape[1],
                scale_blocks=k // 16 if scale_blocks is None else scale_blocks,
                activation=names[x.dtype],
                layout=LAYOUTS[layout],
                **{"global": int(divides)},
            ),
        )
        return y

    def quantize(
        self, x: Array, global_scale: float, *, layout: str = "linear", rule: str = "vllm"
    ) -> tuple[Array, Array]:
        """The packed codes [rows, k / 2] and the scales' bytes as the layout has them."""
        rows, k = x.shape
        x, scalar = in_aligned(x), np.array([global_scale], np.float32)
        blocks = k // 16
        shape = (rows, blocks) if layout == "linear" else (-(-rows // 128) * 128, -(-blocks // 4) * 4)
        codes, scales = (aligned(size, np.dtype(np.uint8), fill=0xAA) for size in ((rows, k // 2), shape))
        self._call(
            "quantize",
            _Quantize(
                rows=rows,
                k=k,
                x=x.ctypes.data,
                global_scale=scalar.ctypes.data,
                codes=codes.ctypes.data,
                scales=scales.ctypes.data,
                activation=1 if x.dtype == DTYPES["float16"] else 0,
                layout=LAYOUTS[layout],
                rule={"vllm": 0, "modelopt": 1}[rule],
            ),
        )
        return codes, scales

    def decoded(self, decoder: int) -> Array:
        """All 16-bit words by one of the three decoders: [word, 8]."""
        values = np.empty((65536, 8), np.float32)
        self._library.decode(decoder, ctypes.c_void_p(values.ctypes.data))
        return values

    def decoded_scales(self) -> Array:
        """All 256 E4M3 bytes."""
        values = np.empty(256, np.float32)
        self._library.decode_scales(ctypes.c_void_p(values.ctypes.data))
        return values


@contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    """A variable as C sees it (os.environ alone does not reach getenv on every Python)."""
    libc = ctypes.CDLL(None)
    libc.setenv(name.encode(), value.encode(), 1)
    try:
        yield
    finally:
        libc.unsetenv(name.encode())
