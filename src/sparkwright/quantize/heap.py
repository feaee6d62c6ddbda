"""Keep the process as small as what it holds, layer after layer, and say what it took.

glibc gives large blocks to its own heap once one of them was freed, and keeps freed heap: with every layer the process
would grow a little.
"""

import ctypes
import os
import resource
from typing import Final

import torch  # type: ignore[import-not-found]

_MMAP_THRESHOLD: Final = -3  # mallopt's name for: blocks from this size on go back to the system when they are freed
_THRESHOLD_BYTES: Final = 1024 * 1024


def _glibc() -> ctypes.CDLL | None:
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None


def give_large_blocks_back() -> None:
    """Before the first layer."""
    if (library := _glibc()) is not None:
        library.mallopt(_MMAP_THRESHOLD, _THRESHOLD_BYTES)
    # Threads that load weights would each keep a heap of their own.
    os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"


def give_rest_back() -> None:
    """After a layer."""
    if (library := _glibc()) is not None:
        library.malloc_trim(0)


def peak_memory() -> dict[str, int]:
    """Bytes that this process took at most, by kind; on GB10 both kinds are in the same memory."""
    peak = {"peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    if torch.cuda.is_initialized():
        peak["peak_cuda_bytes"] = torch.cuda.max_memory_reserved()
    return peak
