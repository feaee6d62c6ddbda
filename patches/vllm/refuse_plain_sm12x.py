"""Stop configure when an SM12x feature would be built without an architecture suffix, or not at all.

vLLM lists the architectures of each group of kernels, and `cuda_archs_loose_intersection` of cmake/utils.cmake
intersects that list with what the user asked for. A group written for the SM12x family (`12.0f`, `12.0a`, `12.1a`)
needs instructions that nvcc only accepts for a target with an `a` or `f` suffix. Asked for a plain `12.1`,
the function answers in one of two harmful ways:

* 0.19 and later: `12.1`. CUTLASS then compiles the FP4 and FP8 GEMMs without an error and without a single tensor
  core instruction: the kernels are empty and the model answers garbage. ptxas rejects the quantisers, but a build
  that replaces their converts gets through.
* 0.16 to 0.18: nothing. The group is left out and vLLM falls back, or fails at run time.

Upstream reaches this with `TORCH_CUDA_ARCH_LIST=12.1` and CUDA 13 in 0.19.x, whose CUDA_SUPPORTED_ARCHS holds 12.1.
The other releases end that list at 12.0 and turn 12.1 into 12.0f, which is right; there the check guards the patch
native-sm121a-code, and any list edited by hand. It looks at results, so `12.1a`, `12.1f`, `12.0`, `12.0f` and lists without
12.x pass untouched, with any CUDA version.
"""

from sparkwright.patching.model import InsertBefore, Patch, Variant

_CHECK = """\
  # A list that names SM12x with a suffix is written for instructions that other targets lack: nvcc would build its
  # kernels empty for a plain 12.x, and an empty answer would leave them out.
  if("${SRC_CUDA_ARCHS}" MATCHES "12\\\\.[0-9]+[af]" AND "${TGT_CUDA_ARCHS}" MATCHES "(^|;)12\\\\.")
    set(_SM12X_ARCHS ${_CUDA_ARCHS})
    list(FILTER _SM12X_ARCHS INCLUDE REGEX "^12\\\\.")
    if(NOT _SM12X_ARCHS OR "${_SM12X_ARCHS}" MATCHES "12\\\\.[0-9]+([+;]|$)")
      message(FATAL_ERROR
        "${OUT_CUDA_ARCHS}: of '${SRC_CUDA_ARCHS}', the architectures '${TGT_CUDA_ARCHS}' select '${_CUDA_ARCHS}'. "
        "These kernels need SM12x instructions that exist only for targets with an 'a' or 'f' suffix; "
        "without one they would be built empty, or left out. "
        "Set TORCH_CUDA_ARCH_LIST to 12.1a (GB10) or 12.0f (every SM12x), not to a plain 12.1.")
    endif()
  endif()

"""

PATCH = Patch(
    title="a plain 12.1 in the architecture list builds SM12x kernels empty, or leaves them out, without an error",
    releases="",
    kind="native",
    category="temporary",
    reference="cmake/utils.cmake, cuda_archs_loose_intersection (0.33.0: line 521)",
    remove_when="vLLM's own cuda_archs_loose_intersection refuses a suffix-less answer to a family-specific list",
    guarded_by="tests/patches/test_refuse_plain_sm12x.py",
    objects=("**/*.cu.o",),
    variants=(
        Variant(
            edits=(
                InsertBefore(
                    path="cmake/utils.cmake",
                    anchor="""\
  set(${OUT_CUDA_ARCHS} ${_CUDA_ARCHS} PARENT_SCOPE)
endfunction()
""",
                    text=_CHECK,
                ),
            )
        ),
    ),
)
