"""What is known of vLLM's model classes, against the pinned source."""

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sparkwright.checkpoint.modules import FUSED
from sparkwright.checkpoint.settings import QUANTIZES_ROUTERS

RELEASE = "0.33.0"
QWEN3_MOE = re.compile(r"\bQwen3Moe(?:Model|SparseMoeBlock)\b")


# Convolutions, which nothing quantizes; vision towers; a gate and an MLP of one model that are fused across two names.
NOT_JUDGED = {"conv1d", "fc13", "attn.qkv", "merged_proj"}


@pytest.mark.sources
def test_every_fusion_is_known(vllm_tree: Callable[[str], Path]) -> None:
    """Some models fuse more than these: what is known of a fusion must be among its parts."""
    found = {
        (fused, tuple(part.rpartition(".")[2] for part in parts))
        for path in (vllm_tree(RELEASE) / "vllm/model_executor/models").glob("*.py")
        for fused, parts in _fusions(path.read_text(encoding="utf-8"))
        if len(parts) > 1
    }
    assert ("in_proj_qkvz", ("in_proj_qkv", "in_proj_z")) in found
    assert len(found) >= 15
    unknown = {
        (fused, parts)
        for fused, parts in found
        if fused not in NOT_JUDGED and not any({*one} <= {*parts} or {*parts} <= {*one} for one in FUSED)
    }
    assert unknown == set()


def _fusions(text: str) -> Iterator[tuple[str, list[str]]]:
    """Every entry of a packed_modules_mapping that is written out."""
    for node in ast.walk(ast.parse(text)) if "packed_modules_mapping" in text else ():
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Dict | ast.List):
            named = ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target)
            if isinstance(node.value, ast.Dict) and named.endswith("packed_modules_mapping"):
                entries = zip(node.value.keys, node.value.values, strict=True)
                yield from ((ast.literal_eval(key), ast.literal_eval(value)) for key, value in entries if key)
            if isinstance(node.value, ast.List) and "packed_modules_mapping[" in named:
                yield named, ast.literal_eval(node.value)


@pytest.mark.sources
def test_the_models_that_quantize_their_routers(vllm_tree: Callable[[str], Path]) -> None:
    models = vllm_tree(RELEASE) / "vllm/model_executor/models"
    sources = {path.stem: path.read_text(encoding="utf-8") for path in models.glob("*.py")}
    builders = {
        name
        for name, text in sources.items()
        if _quantizes_a_router(text) or ("qwen3_moe import" in text and QWEN3_MOE.search(text))
    }
    registered = re.findall(r'"(\w+)": \(\s*"(\w+)"', sources["registry"])
    found = {architecture for architecture, module in registered if module in builders}
    assert "Qwen3VLMoeForConditionalGeneration" in found
    assert {one for one in found if not one.startswith(QUANTIZES_ROUTERS)} == set()
    assert {one for one in QUANTIZES_ROUTERS if not any(name.startswith(one) for name in found)} == set()


def _quantizes_a_router(text: str) -> bool:
    return "GateLinear(" in text and any(
        isinstance(node, ast.Call)
        and getattr(node.func, "id", "") == "GateLinear"
        and any(one.arg == "quant_config" and ast.unparse(one.value) != "None" for one in node.keywords)
        for node in ast.walk(ast.parse(text))
    )
