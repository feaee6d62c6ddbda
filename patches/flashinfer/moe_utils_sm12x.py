"""Let FlashInfer compile its MoE utilities for GB10.

`gen_moe_utils_module` asks for flags of the major versions 9 and 10 only, so that on compute capability 12.1 it raises "No supported
CUDA architectures found for major versions [9, 10]" before anything is compiled. The comment above the call says what the
sources need: compute capability 9.0. FlashInfer 0.6.4 had 12 in the list, and the change that taught it about SM107
dropped it.

vLLM's default paths on GB10 do not use the module (CuTe-DSL MoE does). Upstream: FlashInfer pull request 5237, open.
"""

from sparkwright.patching.model import Because, Contains, NoFile, Patch, Replace, Variant

_PATH = "flashinfer/jit/moe_utils.py"

PATCH = Patch(
    title="the MoE utilities refuse to be compiled for compute capability 12.x",
    releases=">=0.7",
    kind="python",
    category="temporary",
    reference=f"{_PATH} (0.7.2.post1: line 87); FlashInfer pull request 5237",
    remove_when="supported_major_versions of gen_moe_utils_module holds 12",
    guarded_by="tests/patches/test_moe_utils_sm12x.py",
    variants=(
        Variant(
            edits=(
                Replace(
                    path=_PATH,
                    old="        supported_major_versions=[9, 10], map_sm107_to_100f=True\n",
                    new="        supported_major_versions=[9, 10, 12], map_sm107_to_100f=True\n",
                ),
            )
        ),
    ),
    upstream=(
        Because(
            signs=(Contains(path=_PATH, text="        supported_major_versions=[9, 10, 11, 12]\n", count=1),),
            why="major version 12 is in the list",
            releases=">=0.6.4,<0.7",
        ),
    ),
    not_applicable=(
        Because(
            signs=(NoFile(path=_PATH), Contains(path="flashinfer/jit/core.py", text="current_compilation_context")),
            why="this release has no such module",
            releases="<0.6.4",
        ),
    ),
)
