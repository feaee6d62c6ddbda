"""Runs inside the environment of the wheel: import vLLM as on GB10 and print as JSON what its operators answer.

There is no GPU, so the platform is told to be one of compute capability 12.1, and the driver is a stub; nothing is
launched.
"""

import importlib
import importlib.metadata
import json

# They lie in the environment of the wheel, not in the one that is type-checked.
import torch  # type: ignore[import-not-found]
import vllm.platforms  # type: ignore[import-not-found]
from vllm.platforms.cuda import NonNvmlCudaPlatform  # type: ignore[import-not-found]
from vllm.platforms.interface import DeviceCapability  # type: ignore[import-not-found]

MODULES = (
    "vllm._custom_ops",
    "vllm.model_executor.kernels.linear",
    "vllm.model_executor.layers.fused_moe.oracle.nvfp4",
    "vllm.model_executor.models.llama",
    "vllm.model_executor.models.qwen3_next",
    "vllm.v1.worker.gpu_worker",
    "vllm.vllm_flash_attn",
)


class Gb10(NonNvmlCudaPlatform):  # type: ignore[misc]
    """What a GB10 says of itself."""

    @classmethod
    def get_device_capability(cls, device_id: int = 0) -> DeviceCapability:
        """12.1, whatever is in this machine."""
        del device_id
        return DeviceCapability(12, 1)

    @classmethod
    def get_device_name(cls, device_id: int = 0) -> str:
        """As nvidia-smi prints it."""
        del device_id
        return "NVIDIA GB10"


def main() -> None:
    """Import, ask, print."""
    vllm.platforms._current_platform = Gb10()
    for name in MODULES:
        importlib.import_module(name)
    operators = torch.ops._C
    answers = {
        "version": importlib.metadata.version("vllm"),
        "modules": len(MODULES),
        "supports_fp4": operators.cutlass_scaled_mm_supports_fp4(121),
        "supports_fp8": operators.cutlass_scaled_mm_supports_fp8(121),
        "supports_block_fp8": operators.cutlass_scaled_mm_supports_block_fp8(121),
        "supports_fp4_on_hopper": operators.cutlass_scaled_mm_supports_fp4(90),
    }
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
