"""What is known of vLLM's model classes, against the pinned source."""

import ast
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from sparkwright.checkpoint.settings import QUANTIZES_ROUTERS

RELEASE = "0.33.0"
QWEN3_MOE = re.compile(r"\bQwen3Moe(?:Model|SparseMoeBlock)\b")


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
