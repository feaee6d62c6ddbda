"""Detect a doubled name of Qwen3-Next's `in_proj_qkvz`.

The name of a layer is its caller's prefix plus its own. In a development commit before 0.17.0 both the caller and
`create_qkvz_proj` appended `in_proj_qkvz`, so the layer was called `...in_proj_qkvz.in_proj_qkvz`. No entry of a
checkpoint's exclude list matches that: a layer that the checkpoint keeps in 16 bits was built as NVFP4 and failed at load.

No release has the fault: 0.16.0 has no `create_qkvz_proj`, and from 0.17.0 it passes the prefix on as it is. So nothing is
edited, and there is nothing to apply: this row looks where the doubled name would be (the function moved twice) and stops a
build that finds it.
"""

from sparkwright.patching.model import Because, Contains, Lacks, Patch

_OWN_NAME = 'prefix=f"{prefix}.in_proj_qkvz",\n'
_MODEL = "vllm/model_executor/models/qwen3_next.py"
_MODEL_3_5 = "vllm/model_executor/models/qwen3_5.py"
_LAYER = "vllm/model_executor/layers/mamba/gdn_linear_attn.py"
_LAYER_OF_QWEN = "vllm/model_executor/layers/mamba/gdn/qwen_gdn_linear_attn.py"


def _appended_twice(path: str) -> Because:
    return Because(
        signs=(Contains(path=path, text=_OWN_NAME, count=2),),
        why=f"{path}: caller and create_qkvz_proj both append in_proj_qkvz to the name",
    )


def _appended_once(path: str, releases: str) -> Because:
    return Because(
        signs=(
            Contains(path=path, text=_OWN_NAME, count=1),
            Contains(path=path, text="    def create_qkvz_proj(\n", count=1),
        ),
        why=f"{path}: only the caller appends in_proj_qkvz",
        releases=releases,
    )


PATCH = Patch(
    title="in_proj_qkvz gets its name twice, so a checkpoint's exclude list misses it (one development commit)",
    releases="",
    kind="python",
    category="temporary",
    reference=f"{_MODEL}, create_qkvz_proj (0.17.0: line 484)",
    remove_when="no tree of a commit before 0.17.0 is built",
    guarded_by="tests/patches/test_qwen3_next_qkvz_prefix.py",
    fault=(
        _appended_twice(_MODEL),
        _appended_twice(_LAYER),
        _appended_twice(_LAYER_OF_QWEN),
        Because(
            signs=(Contains(path=_MODEL_3_5, text=_OWN_NAME),),
            why=f"{_MODEL_3_5}: its create_qkvz_proj appends in_proj_qkvz, and so does the caller",
        ),
    ),
    upstream=(
        _appended_once(_MODEL, ">=0.17,<0.19"),
        _appended_once(_LAYER, ">=0.19,<0.22"),
        _appended_once(_LAYER_OF_QWEN, ">=0.22"),
    ),
    not_applicable=(
        Because(
            signs=(
                Contains(path=_MODEL, text=_OWN_NAME, count=1),
                Lacks(path=_MODEL, text="create_qkvz_proj"),
            ),
            why="the layer is built in place, there is no create_qkvz_proj",
            releases="<0.17",
        ),
    ),
)
