"""Report NVFP4 as supported only when a kernel for the device was compiled.

`cutlass_scaled_mm_supports_fp4(capability)` is what vLLM asks before it chooses the CUTLASS NVFP4 GEMM. Up to 0.19 it
looks at the CUDA version and at `capability >= 100` alone. A build without the SM120 kernels (an arch list that left them
out) then answers yes on GB10, vLLM chooses CUTLASS, and the first forward pass ends with "No compiled nvfp4 mm kernel for
SM 121". With the truth it falls back to Marlin, which runs.

The compile-time macros that guard the dispatch a few lines above are the truth, so the answer is made of them. Upstream
does the same since 0.20.0. A build of ours cannot be without the kernels: refuse-plain-sm12x stops at configure. This
patch keeps the answer right for whoever builds less.
"""

from sparkwright.patching.model import Because, Contains, Patch, Replace, Variant

_ENTRY = "quantization/fp4/nvfp4_scaled_mm_entry.cu"
_BY_CAPABILITY = """\
  cudaRuntimeGetVersion(&runtimeVersion);
  return cuda_device_capability >= 100 && runtimeVersion >= 12080;
}
"""
_BY_KERNEL = """\
  cudaRuntimeGetVersion(&runtimeVersion);
  bool compiled = false;
#if defined(ENABLE_NVFP4_SM100) && ENABLE_NVFP4_SM100
  compiled = compiled ||
             (cuda_device_capability >= 100 && cuda_device_capability < 120);
#endif
#if defined(ENABLE_NVFP4_SM120) && ENABLE_NVFP4_SM120
  compiled = compiled ||
             (cuda_device_capability >= 120 && cuda_device_capability < 130);
#endif
  return compiled && runtimeVersion >= 12080;
}
"""
_UPSTREAM = """\
#if defined(ENABLE_NVFP4_SM120) && ENABLE_NVFP4_SM120
  if (cuda_device_capability >= 120 && cuda_device_capability < 130)
    return true;
#endif
  return false;
}
"""


def _mended(releases: str, csrc: str) -> Because:
    return Because(
        signs=(Contains(path=f"{csrc}/{_ENTRY}", text=_UPSTREAM, count=1),),
        why="the answer depends on the kernels that were compiled",
        releases=releases,
    )


PATCH = Patch(
    title="a build without SM120 NVFP4 kernels says it supports NVFP4 and fails at the first forward pass",
    releases="<0.20",
    kind="native",
    category="temporary",
    reference="csrc/quantization/fp4/nvfp4_scaled_mm_entry.cu, cutlass_scaled_mm_supports_fp4 (0.19.1: last function)",
    remove_when="no release line below 0.20 is built",
    guarded_by="tests/patches/test_nvfp4_support_requires_kernel.py",
    objects=("**/quantization/fp4/nvfp4_scaled_mm_entry.cu.o",),
    variants=(Variant(edits=(Replace(path=f"csrc/{_ENTRY}", old=_BY_CAPABILITY, new=_BY_KERNEL),)),),
    upstream=(_mended(">=0.20,<0.32", "csrc/libtorch_stable"), _mended(">=0.32", "csrc")),
)
