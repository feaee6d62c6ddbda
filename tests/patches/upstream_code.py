"""Ways to run a piece of real upstream code without the package around it, before and after a patch."""

import __future__

import ast
import builtins
import os
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

from sparkwright.patching.engine import examine
from sparkwright.patching.model import Status
from sparkwright.patching.series import load_series, select
from sparkwright.run import run


def patched_files(tree: Path, version: str, name: str, target: Path) -> Path:
    """Write the files that a patch changes, as it leaves them, to `target`; the tree itself stays as it is.

    The patch must be needed: a tree that lacks the fault is no evidence.
    """
    (found,) = examine(tree, "vllm", version, series=select(load_series("vllm"), (name,))).findings
    assert found.status is Status.NEEDED, found.reason
    for path, content in found.changes.items():
        file = target / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return target


class _Isolate(ast.NodeTransformer):
    """Drop imports, and decorators that are not given: what they would bring is given, or stands in as a mock."""

    def __init__(self, given: set[str]) -> None:
        self._given = given

    def visit_Import(self, node: ast.Import) -> ast.AST:
        return ast.copy_location(ast.Pass(), node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST:
        return ast.copy_location(ast.Pass(), node)

    def _undecorated(self, node: ast.FunctionDef | ast.ClassDef) -> ast.AST:
        node.decorator_list = [one for one in node.decorator_list if ast.unparse(one).split("(")[0] in self._given]
        return self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return self._undecorated(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        return self._undecorated(node)


def _find(body: list[ast.stmt], name: str) -> ast.FunctionDef | ast.ClassDef:
    first, _, rest = name.partition(".")
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == first:
            return _find(node.body, rest) if rest else node
    raise AssertionError(f"upstream has no {name}")


def extract(path: Path, name: str, **given: object) -> Any:  # noqa: ANN401 - whatever stands there
    """A function, class or `Class.method` of an upstream file, compiled as it stands there.

    Names of its surroundings that are not given stand in as mocks; annotations are not evaluated.
    """
    node = _Isolate(set(given)).visit(_find(ast.parse(path.read_text(encoding="utf-8")).body, name))
    used = {one.id for one in ast.walk(node) if isinstance(one, ast.Name) and not hasattr(builtins, one.id)}
    namespace: dict[str, Any] = {"__name__": __name__} | {one: MagicMock(name=one) for one in used} | given
    module = ast.fix_missing_locations(ast.Module(body=[node], type_ignores=[]))
    exec(compile(module, str(path), "exec", flags=__future__.annotations.compiler_flag, dont_inherit=True), namespace)
    return namespace[node.name]


def modelopt_config(tree: Path, excluded: Sequence[str]) -> SimpleNamespace:
    """A ModelOpt NVFP4 config whose is_layer_excluded is that of a tree of vLLM."""
    quantization = tree / "vllm/model_executor/layers/quantization"
    is_layer_excluded = extract(
        quantization / "modelopt.py",
        "ModelOptQuantConfigBase.is_layer_excluded",
        is_layer_skipped=extract(quantization / "utils/quant_utils.py", "is_layer_skipped"),
        fnmatch=fnmatch,
    )
    config = SimpleNamespace(exclude_modules=list(excluded), packed_modules_mapping={}, get_name=lambda: "modelopt_fp4")
    config.is_layer_excluded = lambda prefix: is_layer_excluded(config, prefix)
    return config


def run_cpp(source: str, scratch: Path) -> str:
    """Compile a small C++ program with the host compiler, run it, and return what it prints."""
    program = scratch / "program"
    run([os.environ.get("CXX", "c++"), "-std=c++17", "-x", "c++", "-o", program, "-"], stdin=source)
    return run([program])
