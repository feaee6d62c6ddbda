"""Leave scaled_mm_c2x.cu out of lean builds.

This one object (CUTLASS 2.x, compiled for sm_89 and PTX) costs 708 of the 1,138 CPU seconds of the NVFP4 and FP8 files of
0.33.0. On compute capability 12.x almost nothing reaches it: `cutlass_scaled_mm` of scaled_mm_entry.cu sends every case to
the SM120 kernels and returns. Only `cutlass_scaled_mm_azp`, INT8 activations with zero points, falls through to
it. scaled_mm_entry.cu guards both uses with ENABLE_SCALED_MM_C2X, so nothing is left undefined, and such a model is
told "No compiled cutlass_scaled_mm_azp ... CUDA device capability: 121" as a NotImplementedError at its first
layer, instead of running a kernel that the driver compiled from sm_89 PTX. Other INT8 models are refused on SM120
with or without the file ("Int8 not supported on SM").

Only builds with VLLM_LEAN (patch lean-gb10-externals) leave it out.
"""

from sparkwright.patching.model import InsertAfter, Patch, Variant

PATCH = Patch(
    title="one object that only INT8 models with zero points reach on 12.x takes most of the compile time",
    releases="",
    kind="native",
    category="deliberate",
    reference="CMakeLists.txt, SCALED_MM_2X_ARCHS (0.33.0: line 933); csrc/quantization/w8a8/cutlass/scaled_mm_entry.cu",
    remove_when="upstream does not build scaled_mm_c2x.cu for 12.x, or has an INT8 kernel for SM120",
    guarded_by="tests/patches/test_drop_scaled_mm_c2x.py",
    objects=("**/scaled_mm_c2x.cu.o", "**/scaled_mm_entry.cu.o"),
    after=("lean-gb10-externals",),
    variants=(
        Variant(
            edits=(
                InsertAfter(
                    path="CMakeLists.txt",
                    anchor="""\
  # subtract out the archs that are already built for 3x
  list(REMOVE_ITEM SCALED_MM_2X_ARCHS ${SCALED_MM_3X_ARCHS})
""",
                    text="""\
  if (VLLM_LEAN)
    message(STATUS "VLLM_LEAN: not building scaled_mm_c2x; INT8 models with zero points will be refused")
    set(SCALED_MM_2X_ARCHS)
  endif()
""",
                ),
            )
        ),
    ),
)
