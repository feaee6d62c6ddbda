"""Compile the Hadamard transform for SM12x instead of leaving it to the driver.

HADACORE_ARCHS ends at `9.0+PTX`, so on GB10 the driver compiles compute_90 PTX at the first Hadamard transform. It is one
small file, off the path of NVFP4 checkpoints; what makes it worth a patch is that it would be the only file of
_C_stable_libtorch without machine code for GB10, so that "every container holds code that loads" could not be required of
the library. The file takes the branch it takes on sm_90 (`__CUDA_ARCH__ >= 900`) and uses no instruction beyond that.
"""

from sparkwright.patching.model import Patch, Replace, Variant

PATCH = Patch(
    title="the Hadamard transform holds sm_90 code and PTX only: GB10 compiles it at first use",
    releases="",
    kind="native",
    category="temporary",
    reference="CMakeLists.txt, HADACORE_ARCHS (0.33.0: line 1225)",
    remove_when="HADACORE_ARCHS names 12.0f",
    guarded_by="tests/patches/test_hadacore_sm12x.py",
    objects=("**/hadamard_transform_cuda.cu.o",),
    variants=(
        Variant(
            edits=(
                Replace(
                    path="CMakeLists.txt",
                    old="""\
  cuda_archs_loose_intersection(HADACORE_ARCHS "8.0+PTX;9.0+PTX" "${CUDA_ARCHS}")
""",
                    new="""\
  if(${CMAKE_CUDA_COMPILER_VERSION} VERSION_GREATER_EQUAL 13.0)
    cuda_archs_loose_intersection(HADACORE_ARCHS "8.0+PTX;9.0+PTX;12.0f" "${CUDA_ARCHS}")
  else()
    cuda_archs_loose_intersection(HADACORE_ARCHS "8.0+PTX;9.0+PTX;12.0a;12.1a" "${CUDA_ARCHS}")
  endif()
""",
                ),
            )
        ),
    ),
)
