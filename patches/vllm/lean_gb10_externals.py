"""Add a VLLM_LEAN build: vLLM's own extensions, none of the external projects.

At configure time vLLM clones up to ten other repositories (0.33.0: triton_kernels, DeepGEMM, DeepSelect, MSA, FlashMLA, FlashKDA,
QuTLASS, tml-fa4, flash-attention, and CUTLASS), each before it asks whether the target architecture can use it. For
GB10 most cannot be used at all, and 0.33.0 also refuses GCC below 13 there, which only two of them need. A build that
depends on so many downloads of code it cannot run is not one that a Spark owner can repeat.

With `-DVLLM_LEAN=ON` (setup.py: VLLM_LEAN=1 in the environment) configure stops after vLLM's own targets, and setup.py drops
the extension modules of the external projects and the copy of triton_kernels. Without it nothing changes. CUTLASS is still
needed and comes from VLLM_CUTLASS_SRC_DIR.

A lean tree lacks parts that vLLM wants at run time. FA2 is not optional: without `_vllm_fa2_C` no model module imports on CUDA. These parts
come by hash from the official wheel of the same release (FA2, the Rust front end, DeepGEMM, triton_kernels, FlashKDA);
`build.sh --host --wheel` adds them and reports where each came from.
"""

from sparkwright.patching.model import InsertAfter, InsertBefore, Patch, Replace, Variant

PATCH = Patch(
    title="configure clones and builds every external project before it asks whether GB10 can use it",
    releases="",
    kind="native",
    category="deliberate",
    reference="CMakeLists.txt after 'build the triton_kernels external package' (0.33.0: lines 1684-1714); setup.py",
    remove_when="upstream checks the architecture before it fetches, and can build without the external projects",
    guarded_by="tests/patches/test_lean_gb10_externals.py",
    objects=("**/*-src/**",),
    variants=(
        Variant(
            edits=(
                InsertAfter(
                    path="CMakeLists.txt",
                    anchor='set(VLLM_TARGET_DEVICE "cuda" CACHE STRING "Target device backend for vLLM")\n',
                    text='option(VLLM_LEAN "Build only the extensions whose sources are in csrc/, no external project" OFF)\n',
                ),
                InsertBefore(
                    path="CMakeLists.txt",
                    anchor="""\
# For CUDA and HIP builds also build the triton_kernels external package.
if(VLLM_GPU_LANG STREQUAL "CUDA" OR VLLM_GPU_LANG STREQUAL "HIP")
    include(cmake/external_projects/triton_kernels.cmake)
endif()
""",
                    text="""\
if(VLLM_LEAN)
  message(STATUS "VLLM_LEAN: no external project is fetched or built; they come from elsewhere")
  return()
endif()

""",
                ),
                InsertAfter(
                    path="setup.py",
                    anchor="\nVLLM_TARGET_DEVICE = envs.VLLM_TARGET_DEVICE\n",
                    text="""\
# Build only the extensions whose sources are in csrc/.
VLLM_LEAN = os.getenv("VLLM_LEAN", "").lower() not in ("", "0", "false", "no", "off")
# Extension modules that external projects build, by the start of their names.
EXTERNAL_EXTENSIONS = (
    "vllm.triton_kernels",
    "vllm.vllm_flash_attn.",
    "vllm._flashmla_",
    "vllm._flashkda_C",
    "vllm._deep_gemm_C",
    "vllm._deepselect_C",
    "vllm._qutlass_C",
    "vllm.fmha_sm100",
    "vllm.tml_fa4",
)
""",
                ),
                InsertBefore(
                    path="setup.py",
                    anchor="""\
        other_cmake_args = os.environ.get("CMAKE_ARGS")
        if other_cmake_args:
""",
                    text="""\
        if VLLM_LEAN:
            cmake_args += ["-DVLLM_LEAN=ON"]

""",
                ),
                Replace(
                    path="setup.py",
                    old="""\
        if _is_cuda() or _is_hip():
            # copy vllm/third_party/triton_kernels/**/*.py from self.build_lib
""",
                    new="""\
        if (_is_cuda() or _is_hip()) and not VLLM_LEAN:
            # copy vllm/third_party/triton_kernels/**/*.py from self.build_lib
""",
                ),
                InsertBefore(
                    path="setup.py",
                    anchor="""\
if _no_device():
    ext_modules = []

if not ext_modules:
""",
                    text="""\
if VLLM_LEAN:
    ext_modules = [
        ext for ext in ext_modules if not ext.name.startswith(EXTERNAL_EXTENSIONS)
    ]

""",
                ),
            )
        ),
    ),
)
