"""A vLLM plugin for the tests: NVFP4 on a CPU, by vLLM's own emulation kernel, which it keeps for GPUs only."""

from vllm.model_executor.kernels import linear  # type: ignore[import-not-found]
from vllm.platforms.interface import PlatformEnum  # type: ignore[import-not-found]


def register() -> None:
    """Let the CPU platform choose it."""
    linear._POSSIBLE_NVFP4_KERNELS.setdefault(PlatformEnum.CPU, [linear.EmulationNvFp4LinearKernel])
