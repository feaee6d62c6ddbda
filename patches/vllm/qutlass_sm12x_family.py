"""Build QuTLASS for the SM12x family in vLLM before 0.19.

qutlass.cmake of 0.16 to 0.18 lists `12.0a` for CUDA 13. An a-target is for one compute capability only: the cubins load on
12.0 and not on 12.1, so on GB10 the MXFP4 and NVFP4 Hadamard layers fail with "no kernel image is available". All other SM120
features of those releases list `12.0f` there. This does the same, and lets the choice of TARGET_CUDA_ARCH accept it. For CUDA
12.8 and 12.9 nothing changes: those releases cannot pass a 12.1 request on to the list.

A lean build (lean-gb10-externals) does not build QuTLASS at all; the patch is for builds that do.
"""

from sparkwright.patching.model import Because, Contains, Patch, Replace, Variant

_PATH = "cmake/external_projects/qutlass.cmake"

PATCH = Patch(
    title="QuTLASS is built as 12.0a, which cannot load on GB10",
    releases="<0.19",
    kind="native",
    category="temporary",
    reference=f"{_PATH} (0.16.0: lines 35 and 44); mended upstream in 0.19.0",
    remove_when="no pinned release is older than 0.19",
    guarded_by="tests/patches/test_qutlass_sm12x_family.py",
    objects=("**/qutlass-src/**",),
    variants=(
        Variant(
            edits=(
                Replace(
                    path=_PATH,
                    old='  cuda_archs_loose_intersection(QUTLASS_ARCHS "12.0a;10.0f" "${CUDA_ARCHS}")\n',
                    new='  cuda_archs_loose_intersection(QUTLASS_ARCHS "12.0f;10.0f" "${CUDA_ARCHS}")\n',
                ),
                Replace(
                    path=_PATH,
                    old='  elseif(QUTLASS_ARCHS MATCHES "12\\\\.0a")\n',
                    new='  elseif(QUTLASS_ARCHS MATCHES "12\\\\.0[af]")\n',
                ),
            )
        ),
    ),
    upstream=(
        Because(
            signs=(
                Contains(
                    path=_PATH, text='  cuda_archs_loose_intersection(QUTLASS_ARCHS "10.0f;12.0f" "${CUDA_ARCHS}")\n'
                ),
            ),
            why="qutlass.cmake lists 12.0f",
            releases=">=0.19,<0.24",
        ),
        Because(
            signs=(
                Contains(
                    path=_PATH, text='  cuda_archs_loose_intersection(QUTLASS_SM120_ARCHS "12.0f" "${CUDA_ARCHS}")\n'
                ),
            ),
            why="qutlass.cmake has a list of its own for SM12x, with 12.0f",
            releases=">=0.24",
        ),
    ),
)
