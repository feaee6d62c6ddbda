"""Let the FP8 GEMMs of vLLM before 0.22 run in cubins built for 12.1.

The SM120 FP8 kernels are wrapped in `enable_sm120_only`, whose body is the kernel where `__CUDA_ARCH__` is exactly 1200 and
`printf("This kernel only supports sm120."); trap` everywhere else. Code built for 12.0f has `__CUDA_ARCH__` 1200 and runs on GB10;
code built for 12.1a has 1210, compiles without an error and traps at the first FP8 GEMM. csrc/cutlass_extensions/common.hpp
already holds `enable_sm120_family`, which the blockwise FP8 kernels use; upstream moved these kernels to it in 0.22.0.

Who meets it: 0.19, whose supported list holds 12.1 so that `12.1a` is really built, and any earlier or later release
whose list was extended by hand. The stock lists of 0.16 to 0.18 and 0.20 to 0.21 end at 12.0; there the trap is armed but out of
reach.
"""

from sparkwright.patching.model import Because, Contains, Edit, Lacks, Patch, Replace, Variant

_CSRC = "csrc/quantization/w8a8/cutlass/c3x"
_STABLE = "csrc/libtorch_stable/quantization/w8a8/cutlass/c3x"
_ONLY = """\
  using GemmKernel = enable_sm120_only<cutlass::gemm::kernel::GemmUniversal<
      Shape<int, int, int, int>, CollectiveMainloop, CollectiveEpilogue, void>>;
"""
_FAMILY = _ONLY.replace("enable_sm120_only", "enable_sm120_family")


def _family(path: str) -> Edit:
    return Replace(path=path, old=_ONLY, new=_FAMILY)


def _mended(folder: str, releases: str) -> Because:
    return Because(
        signs=(
            Contains(path=f"{folder}/scaled_mm.cuh", text=_FAMILY, count=1),
            Contains(path=f"{folder}/scaled_mm_sm120_fp8_dispatch.cuh", text=_FAMILY, count=1),
        ),
        why="the SM120 FP8 kernels use enable_sm120_family",
        releases=releases,
    )


PATCH = Patch(
    title="FP8 GEMMs trap in a cubin built for 12.1: their guard admits 12.0 only",
    releases="<0.22",
    kind="native",
    category="temporary",
    reference="csrc/quantization/w8a8/cutlass/c3x/scaled_mm.cuh (0.16.0: line 205); mended upstream in 0.22.0",
    remove_when="no pinned release is older than 0.22",
    guarded_by="tests/patches/test_fp8_sm120_family_guard.py",
    objects=("**/c3x/scaled_mm_sm120_fp8.cu.o", "**/c3x/scaled_mm_blockwise_sm120_fp8.cu.o"),
    variants=(
        Variant(
            releases="<0.17",
            requires=(Lacks(path=f"{_CSRC}/scaled_mm_sm120_fp8_dispatch.cuh", text="enable_sm120_only"),),
            edits=(_family(f"{_CSRC}/scaled_mm.cuh"),),
        ),
        Variant(
            releases=">=0.17,<0.20",
            edits=(_family(f"{_CSRC}/scaled_mm.cuh"), _family(f"{_CSRC}/scaled_mm_sm120_fp8_dispatch.cuh")),
        ),
        Variant(
            releases=">=0.20",
            edits=(_family(f"{_STABLE}/scaled_mm.cuh"), _family(f"{_STABLE}/scaled_mm_sm120_fp8_dispatch.cuh")),
        ),
    ),
    upstream=(_mended(_STABLE, "<0.32"), _mended(_CSRC, ">=0.32")),
)
