"""Native code: the CUDA toolchain from wheels, and vLLM's own CMake build for GB10 on any Linux machine."""

from sparkwright.native.toolchain import toolchain

__all__ = ["toolchain"]
