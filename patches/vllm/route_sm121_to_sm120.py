"""Detect a dispatch that takes exactly 12.0 and keeps 12.1 off an SM120 kernel.

GB10 (12.1) runs the kernels that upstream calls SM120. The early fixes for GB10 taught the dispatchers of vLLM's csrc to
accept 121; every release from 0.16.0 on tests `version_num >= 120` (FP8) and `sm >= 120 && sm < 130` (NVFP4), so there is
nothing to route. This row looks at both, and stops a build whose dispatcher asks for 120 alone.

What is left of exact checks for 12.0, over all releases from 0.16.0 to 0.33.0:

Correctness
* Marlin with FP8 activations, up to 0.22.1: has its own patch, marlin-fp8-input-sm121.
* `enable_sm120_only` in csrc/cutlass_extensions/common.hpp, used up to 0.21: has its own patch, fp8-sm120-family-guard.
  It stands there unused up to 0.31.
* warmup/fa4_cutedsl_config.py, 0.25 and 0.26: raises for 12.1, but is never reached: FlashAttention 4 is refused on every
  12.x before (vllm_flash_attn/flash_attn_interface.py, _is_fa4_supported).

Speed only, from 0.31 on. Each picks a number that was tuned on a 12.0 board and has not been measured on GB10. 12.1 takes
upstream's general value, which is right, if perhaps not the fastest; so these stay until there is a measurement.
* models/qwen4_exp/nvidia/ops/qsa.py (from 0.31): a tuning table.
* models/minimax_m3/common/ops/index_topk.py (from 0.32): split-K of the index scores.
* v1/attention/backends/triton_attn.py (from 0.32): 64 instead of 16 softmax segments for few requests.

A test walks the whole source for such checks and compares with this list, so a new one does not go unseen.
"""

from sparkwright.patching.model import Because, Contains, Patch

_FP8 = "quantization/w8a8/cutlass/scaled_mm_entry.cu"
_NVFP4 = "quantization/fp4/nvfp4_scaled_mm_entry.cu"
_NVFP4_MOE = "quantization/fp4/nvfp4_blockwise_moe_kernel.cu"
_ROOTS = ("csrc", "csrc/libtorch_stable")


def _exact(path: str, capability: str) -> Because:
    return Because(
        signs=(Contains(path=path, text=f"({capability} == 120"),),
        why=f"{path} takes 12.0 alone; 12.1 finds no kernel",
    )


def _routed(releases: str, csrc: str) -> Because:
    return Because(
        signs=(
            Contains(path=f"{csrc}/{_FP8}", text="  if (version_num >= 120) {\n", count=1),
            Contains(path=f"{csrc}/{_NVFP4}", text="  if (sm >= 120 && sm < 130) {\n", count=1),
            Contains(path=f"{csrc}/{_NVFP4_MOE}", text="  if (version_num >= 120 && version_num < 130) {\n", count=2),
        ),
        why="the FP8 and NVFP4 dispatchers take all of 12.x; what else is exact is listed in the patch file",
        releases=releases,
    )


PATCH = Patch(
    title="a dispatcher asks for capability 12.0 exactly and keeps 12.1 off the SM120 kernels (no release since 0.16)",
    releases="",
    kind="native",
    category="temporary",
    reference=f"csrc/{_FP8} (0.16.0: line 199), csrc/{_NVFP4} (0.16.0: line 53)",
    remove_when="no tree before 0.16.0 is built",
    guarded_by="tests/patches/test_route_sm121_to_sm120.py",
    fault=tuple(
        _exact(f"{csrc}/{path}", capability)
        for csrc in _ROOTS
        for path, capability in ((_FP8, "version_num"), (_NVFP4, "sm"), (_NVFP4_MOE, "version_num"))
    ),
    upstream=(
        _routed("<0.20", "csrc"),
        _routed(">=0.20,<0.32", "csrc/libtorch_stable"),
        _routed(">=0.32", "csrc"),
    ),
)
