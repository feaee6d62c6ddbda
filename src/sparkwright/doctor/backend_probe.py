"""Runs in a process of its own, with vLLM: which NVFP4 kernels it takes by itself, on this GPU or as on a GB10.

`--as-gb10` tells vLLM that its GPU is one of compute capability 12.1, which works where there is none.
"""

import json
import sys
from typing import Any


def pretend() -> None:
    """Make vLLM's platform a GB10."""
    import vllm.platforms  # type: ignore[import-not-found]
    from vllm.platforms.cuda import NonNvmlCudaPlatform  # type: ignore[import-not-found]
    from vllm.platforms.interface import DeviceCapability  # type: ignore[import-not-found]

    class Gb10(NonNvmlCudaPlatform):  # type: ignore[misc]
        """What a GB10 says of itself."""

        @classmethod
        def get_device_capability(cls, device_id: int = 0) -> Any:  # noqa: ANN401  vLLM's own type
            """12.1, whatever is in this machine."""
            del device_id
            return DeviceCapability(12, 1)

        @classmethod
        def get_device_name(cls, device_id: int = 0) -> str:
            """As nvidia-smi prints it."""
            del device_id
            return "NVIDIA GB10"

    vllm.platforms._current_platform = Gb10()  # noqa: SLF001  vLLM has no public way


def linear() -> dict[str, Any]:
    """The first kernel for NVFP4 linear layers that says it is supported, and why those before it are not."""
    from vllm.model_executor.kernels import linear as kernels  # type: ignore[import-not-found]
    from vllm.platforms import current_platform

    refused: dict[str, str] = {}
    for kernel in kernels._POSSIBLE_NVFP4_KERNELS[current_platform._enum]:  # noqa: SLF001
        supported, why = kernel.is_supported()
        if supported:
            return {"chosen": kernel.__name__, "refused": refused}
        refused[kernel.__name__] = str(why)
    return {"chosen": "", "refused": refused}


def main() -> None:
    """Ask, and print the answers."""
    printed, sys.stdout = sys.stdout, sys.stderr  # importing vLLM logs
    if "--as-gb10" in sys.argv[1:]:
        pretend()
    from vllm.utils.flashinfer import has_flashinfer  # type: ignore[import-not-found]

    print(json.dumps({"flashinfer": bool(has_flashinfer()), **linear()}), file=printed)


if __name__ == "__main__":
    main()
