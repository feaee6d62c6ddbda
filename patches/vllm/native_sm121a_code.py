"""Let `TORCH_CUDA_ARCH_LIST=12.1a` produce sm_121a machine code.

vLLM intersects what the user asks for with CUDA_SUPPORTED_ARCHS, and for CUDA 13 that list ends at 12.0. So `12.1a` silently
becomes `12.0`: of the 108 CUDA objects of 0.33.0, 47 are built as plain sm_120, 54 as sm_120f, 7 for an older
architecture, and none as sm_121a. With 12.1 in the list 101 are sm_121a.

Both forms load on GB10 (compute capability 12.1) and for the NVFP4 GEMM their machine code is equal word for word, so this is
not about speed. `12.1a` is the default here for two reasons. What was asked for is what is built, and cuobjdump prints
it: an sm_120f cubin is shown as `sm_120`, as a plain one is, so that only its instructions tell whether family code was
lost, while sm_121a says it by name. And no object is left as plain sm_120, for which no kernel may ever use a family
instruction. The price is that the result runs on GB10 only; `12.0f` remains a choice for a build that must also run on
other SM12x boards, and needs no patch.

A plain `12.1` would now reach the kernels' own lists and build empty GEMMs, so this patch is refused without
refuse-plain-sm12x.

Not where it would do harm:

* 0.16 to 0.18: cmake/utils.cmake cannot match 12.1 with 12.0f, so every SM120 feature would be left out.
* 0.19: the list already holds 12.1.
* 0.20 and 0.21: the list ends at 12.0, but Marlin's generator writes the FP8-activation kernels for 8.9 and 12.0 only, so a
  12.1 build would lose them. Use 12.0f there.
"""

from sparkwright.patching.model import Because, Contains, Patch, Replace, Variant

_CMAKE = "CMakeLists.txt"
_FROM_13_0 = 'set(CUDA_SUPPORTED_ARCHS "7.5;8.0;8.6;8.7;8.9;9.0;10.0;11.0;12.0")\n'
_FROM_13_4 = 'set(CUDA_SUPPORTED_ARCHS "7.5;8.0;8.6;8.7;8.9;9.0;10.0;10.7;11.0;12.0")\n'
_REFUSED = Contains(path="cmake/utils.cmake", text="Set TORCH_CUDA_ARCH_LIST to 12.1a (GB10) or 12.0f (every SM12x)")


def _with_12_1(line: str) -> Replace:
    return Replace(path=_CMAKE, old=line, new=line.replace('12.0")', '12.0;12.1")'))


PATCH = Patch(
    title="asked for 12.1a, vLLM builds no sm_121a code: its list of supported architectures ends at 12.0",
    releases=">=0.22",
    kind="native",
    category="deliberate",
    reference="CMakeLists.txt, CUDA_SUPPORTED_ARCHS (0.33.0: lines 123 and 129); vLLM pull request 38484",
    remove_when="CUDA_SUPPORTED_ARCHS for CUDA >= 13 holds 12.1",
    guarded_by="tests/patches/test_native_sm121a_code.py",
    objects=("**/*.cu.o",),
    after=("refuse-plain-sm12x",),
    variants=(
        Variant(releases="<0.27", requires=(_REFUSED,), edits=(_with_12_1(_FROM_13_0),)),
        Variant(releases=">=0.27", requires=(_REFUSED,), edits=(_with_12_1(_FROM_13_0), _with_12_1(_FROM_13_4))),
    ),
    upstream=(
        Because(
            signs=(Contains(path=_CMAKE, text='"7.5;8.0;8.6;8.7;8.9;9.0;10.0;11.0;12.0;12.1")\n', count=1),),
            why="the supported list already holds 12.1",
            releases=">=0.19",
        ),
    ),
    not_applicable=(
        Because(
            signs=(
                Contains(path=_CMAKE, text=_FROM_13_0, count=1),
                Contains(path="cmake/utils.cmake", text='if ("${_base}" IN_LIST TGT_CUDA_ARCHS)\n', count=1),
            ),
            why="its CMake cannot match 12.1 with a 12.0f list: SM120 features would be left out; 12.0f is right here",
            releases="<0.19",
        ),
        Because(
            signs=(
                Contains(path=_CMAKE, text=_FROM_13_0, count=1),
                Contains(
                    path="csrc/quantization/marlin/generate_kernels.py", text="    if arch in [89, 120]:\n", count=1
                ),
            ),
            why="its Marlin generator knows FP8 activations for 12.0 only: a 12.1 build would lose them",
            releases=">=0.20,<0.22",
        ),
    ),
)
