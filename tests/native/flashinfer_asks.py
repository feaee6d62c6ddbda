"""Runs in the Python that has FlashInfer: call its own look-ups as vLLM does on 12.1, and print the names they ask for.

Nothing may be compiled, so that each look-up ends with the name of the module that is missing. With the word `load`,
load the module `norm` instead, and print whether it has its function.
"""

import importlib
import json
import sys
from collections.abc import Callable

import torch  # type: ignore[import-not-found]
from flashinfer.jit.core import MissingJITCacheError  # type: ignore[import-not-found]


def asked(look_up: Callable[..., object], *arguments: object) -> str:
    """The name of the module that a look-up misses."""
    try:
        look_up(*arguments)
    except MissingJITCacheError as error:
        return str(error.spec.name)
    return "there"


def names() -> list[str]:
    """What vLLM's ways on compute capability 12.1 lead to."""
    part = importlib.import_module
    attention = (torch.bfloat16, torch.float8_e4m3fn, torch.bfloat16, torch.int32)
    plain = (0, False, False, False)
    return [
        asked(part("flashinfer.fused_moe.core").get_cutlass_fused_moe_module, "121"),
        asked(part("flashinfer.gemm.gemm_base").get_gemm_sm120_module_cutlass_fp4),
        asked(part("flashinfer.quantization.fp4_quantization").get_fp4_quantization_module, "121"),
        asked(part("flashinfer.prefill").get_batch_prefill_module, "fa2", *attention, 128, 128, *plain),
        asked(part("flashinfer.prefill").get_batch_prefill_module, "fa2", *attention, 256, 256, *plain),
        asked(part("flashinfer.sampling").get_sampling_module),
        asked(part("flashinfer.topk").get_topk_module),
    ]


def main() -> None:
    """Ask, or load."""
    printed, sys.stdout = sys.stdout, sys.stderr
    if sys.argv[1:] == ["load"]:
        module = importlib.import_module("flashinfer.jit.norm").gen_norm_module().build_and_load()
        print(json.dumps(callable(module.rmsnorm)), file=printed)
        return
    print(json.dumps(names()), file=printed)


if __name__ == "__main__":
    main()
