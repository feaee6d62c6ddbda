"""What the kernels' benchmark asks of vLLM's Marlin exists in the pinned release, and is what vLLM's own layers ask."""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.kernels.test_plugin_interfaces import Source

from sparkwright.paths import CHECKOUT
from sparkwright.pins import default_line

pytestmark = pytest.mark.sources

BENCHMARK = ast.parse((CHECKOUT / "benchmarks/kernels/marlin.py").read_text(encoding="utf-8"))
LINEAR = ("vllm.model_executor.kernels.linear.nvfp4.marlin", "MarlinNvFp4LinearKernel")
EXPERTS = ("vllm.model_executor.layers.fused_moe.experts.marlin_moe", "MarlinExperts")


@pytest.fixture(scope="module")
def vllm(vllm_tree: Callable[[str], Path]) -> Source:
    return Source(vllm_tree(default_line()))


def imported() -> dict[str, tuple[str, str]]:
    """By its name in the benchmark: the module and the name in it."""
    return {
        alias.name: (statement.module, alias.name)
        for statement in ast.walk(BENCHMARK)
        if isinstance(statement, ast.ImportFrom) and (statement.module or "").startswith("vllm.")
        for alias in statement.names
        if statement.module
    }


def calls(tree: ast.AST, function: str) -> Iterator[ast.Call]:
    """The calls of what has this spelling."""
    for one in ast.walk(tree):
        if isinstance(one, ast.Call) and ast.unparse(one.func) == function:
            yield one


def named(call: ast.Call) -> set[str]:
    return {keyword.arg for keyword in call.keywords if keyword.arg}


def test_every_imported_name_is_there(vllm: Source) -> None:
    assert len(imported()) == 6
    assert [name for name, place in imported().items() if vllm.find(*place) is None] == []
    types = vllm.class_(*imported()["scalar_types"])
    assert "float4_e2m1f" in ast.unparse(types)


@pytest.mark.parametrize(
    "name",
    [
        "get_marlin_workspace",
        "prepare_fp4_layer_for_marlin",
        "apply_fp4_marlin_linear",
        "prepare_nvfp4_moe_layer_for_marlin",
        "fused_marlin_moe",
    ],
)
def test_calls_fit_the_signatures(vllm: Source, name: str) -> None:
    function = vllm.find(*imported()[name])
    assert isinstance(function, ast.FunctionDef)
    parameters = [argument.arg for argument in function.args.args]
    required = parameters[: len(parameters) - len(function.args.defaults)]
    (call,) = calls(BENCHMARK, name)
    given = [*parameters[: len(call.args)], *named(call)]
    assert len(given) == len(set(given))
    assert set(required) <= set(given) <= set(parameters)


def test_a_linear_layer_of_vllm_gives_the_same_arguments(vllm: Source) -> None:
    (ours,) = calls(BENCHMARK, "apply_fp4_marlin_linear")
    (theirs,) = calls(vllm.class_(*LINEAR), "apply_fp4_marlin_linear")
    assert named(ours) == named(theirs) - {"bias"}


def test_experts_of_vllm_are_summed_the_same_way(vllm: Source) -> None:
    definition = vllm.class_(*EXPERTS)
    (ours,) = calls(BENCHMARK, "fused_marlin_moe")
    assert "moe_sum" in named(ours)
    for theirs in calls(definition, "fused_marlin_moe"):
        # vLLM has the locks from its own store, which the benchmark does not start.
        assert named(ours) - named(theirs) == {"workspace"}
    sums = next(one for one in definition.body if isinstance(one, ast.FunctionDef) and one.name == "moe_sum")
    assert [len(call.args) for call in calls(sums, "ops.moe_sum")] == [4, 2]
    assert [len(call.args) for call in calls(BENCHMARK, "ops.moe_sum")] == [2]
    assert vllm.find("vllm._custom_ops", "moe_sum") is not None
