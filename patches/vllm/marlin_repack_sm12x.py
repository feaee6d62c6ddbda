"""Compile Marlin's repack and helper files for SM12x instead of leaving them to the driver.

Marlin's GEMM kernels are built for 12.0f since 0.23, but the files around them (repacking of GPTQ and AWQ weights, the INT4-FP8
preprocessing, the dense and the MoE entry) have a list of their own that ends at `8.0+PTX`. On GB10 the driver compiles
their PTX when they are first used, which every NVFP4 checkpoint served by Marlin does while it loads: seconds of start-up on
each machine and after each driver update, for code that is known when the image is built.

This adds 12.0f (for CUDA < 13 12.0a and 12.1a), in the form upstream uses for the GEMM kernels. Nothing else changes: the files
use no instruction beyond sm_80. In releases before 0.23 the GEMM kernels themselves are built for 8.0 and PTX too; that is
left as it is.
"""

from sparkwright.patching.model import Edit, Patch, Replace, Variant


def _add_sm12x(variable: str, indent: str) -> Edit:
    call = f"{indent}cuda_archs_loose_intersection({variable}"
    return Replace(
        path="CMakeLists.txt",
        old=f'{call} "7.5;8.0+PTX" "${{CUDA_ARCHS}}")\n',
        new=f"""\
{indent}if(${{CMAKE_CUDA_COMPILER_VERSION}} VERSION_GREATER_EQUAL 13.0)
  {call} "7.5;8.0+PTX;12.0f" "${{CUDA_ARCHS}}")
{indent}else()
  {call} "7.5;8.0+PTX;12.0a;12.1a" "${{CUDA_ARCHS}}")
{indent}endif()
""",
    )


_MOE = _add_sm12x("MARLIN_MOE_OTHER_ARCHS", "  ")

PATCH = Patch(
    title="Marlin's repack and MoE helper files hold sm_80 code and PTX only: GB10 compiles them at first use",
    releases="",
    kind="native",
    category="temporary",
    reference="CMakeLists.txt, MARLIN_OTHER_ARCHS and MARLIN_MOE_OTHER_ARCHS (0.33.0: lines 680 and 1404)",
    remove_when="both lists name 12.0f, as MARLIN_ARCHS does since 0.23",
    guarded_by="tests/patches/test_marlin_repack_sm12x.py",
    objects=("**/quantization/marlin/*marlin*.cu.o", "**/moe/marlin_moe_wna16/ops.cu.o"),
    variants=(
        Variant(releases="<0.24", edits=(_add_sm12x("MARLIN_OTHER_ARCHS", "  "), _MOE)),
        Variant(releases=">=0.24", edits=(_add_sm12x("MARLIN_OTHER_ARCHS", "    "), _MOE)),
    ),
)
