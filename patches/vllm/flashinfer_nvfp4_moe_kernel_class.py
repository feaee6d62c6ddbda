"""Return the kernel class with the chosen FlashInfer NVFP4 MoE backend.

With VLLM_USE_FLASHINFER_MOE_FP4=1 and no VLLM_FLASHINFER_MOE_BACKEND, vLLM 0.16.0 tries each FlashInfer backend, finds the
class that supports the layer, and returns None in its place. TRTLLM has no class and expects None; GB10 ends at
FlashInfer CUTLASS, and ModelOpt's MoE layer then stops at load with `assert self.experts_cls is not None`.

The loop already holds the right value for both: `k_cls` is None for TRTLLM. 0.17.0 rewrote the selection.

Settings that avoid the fault: leave VLLM_USE_FLASHINFER_MOE_FP4 unset (FlashInfer CUTLASS is the automatic choice on GB10
anyway), or add VLLM_FLASHINFER_MOE_BACKEND=throughput. The patch exists for the recipes that set the one variable alone.
"""

from sparkwright.patching.model import Because, Contains, Lacks, Patch, Replace, Variant

_ORACLE = "vllm/model_executor/layers/fused_moe/oracle/nvfp4.py"
_WITHOUT_CLASS = """\
                if supported:
                    logger.info_once(_make_log_backend(backend), scope="local")
                    return backend, None
                else:
                    logger.debug_once(
"""

PATCH = Patch(
    title="VLLM_USE_FLASHINFER_MOE_FP4=1 selects FlashInfer CUTLASS without its kernel class; NVFP4 MoE models fail at load",
    releases="==0.16.*",
    kind="python",
    category="temporary",
    reference=f"{_ORACLE}, select_nvfp4_moe_backend (0.16.0: line 220)",
    remove_when="the 0.16.0 line is no longer built",
    guarded_by="tests/patches/test_flashinfer_nvfp4_moe_kernel_class.py",
    variants=(
        Variant(
            edits=(
                Replace(
                    path=_ORACLE,
                    old=_WITHOUT_CLASS,
                    new=_WITHOUT_CLASS.replace("return backend, None", "return backend, k_cls"),
                ),
            )
        ),
    ),
    upstream=(
        Because(
            signs=(Contains(path=_ORACLE, text="return backend, k_cls\n", count=3),),
            why="every way through the selection returns a kernel class",
            releases=">=0.17,<0.24",
        ),
        Because(
            signs=(
                Contains(path=_ORACLE, text="return backend, k_cls\n", count=2),
                Lacks(path=_ORACLE, text="VLLM_USE_FLASHINFER_MOE_FP4"),
            ),
            why="the variable is gone (--moe-backend instead), and every way returns a kernel class",
            releases=">=0.24",
        ),
    ),
)
