"""What the plugin takes from vLLM exists in the releases that it is for, with the signatures that it relies on."""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.kernels.build import KERNELS

from sparkwright.entrypoint.own_kernels import LEAVE_ROOM

pytestmark = pytest.mark.sources

PLUGIN = KERNELS / "python" / "gb10_kernels" / "vllm_plugin"
FILES = ("__init__.py", "compile_cache.py", "fallback.py", "linear.py", "moe.py")
RELEASES = ("0.32.0", "0.33.0")
CONFIG = "vllm.model_executor.layers.fused_moe.config"
HARMLESS = {"Parameter", "replace_parameter", "to"}
"""What a kernel may do to weights beside the two things that the GEMV knows of: store them, move a table."""
Definition = ast.Module | ast.stmt


class Source:
    """vLLM's source, asked by dotted names."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._trees: dict[str, ast.Module] = {}

    def _file(self, module: str) -> Path | None:
        path = self._root.joinpath(*module.split("."))
        return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)

    def module(self, name: str) -> ast.Module:
        """The syntax tree of a module."""
        file = self._file(name)
        assert file is not None, f"there is no {name}"
        if name not in self._trees:
            self._trees[name] = ast.parse(file.read_text(encoding="utf-8"))
        return self._trees[name]

    def find(self, module: str, name: str) -> Definition | None:
        """Where a name of a module is defined, through imports; None where it is not."""
        if self._file(f"{module}.{name}") is not None:
            return self.module(f"{module}.{name}")
        for statement in self._statements(self.module(module)):
            if isinstance(statement, ast.ImportFrom) and statement.module:
                for alias in statement.names:
                    if (alias.asname or alias.name) == name and statement.module.startswith("vllm"):
                        return self.find(statement.module, alias.name)
            elif name in _names(statement):
                return statement
        return None

    def _statements(self, tree: ast.Module) -> Iterator[ast.stmt]:
        for statement in tree.body:
            yield statement
            if isinstance(statement, ast.If | ast.Try):
                yield from (one for one in ast.walk(statement) if isinstance(one, ast.stmt) and one is not statement)

    def class_(self, module: str, name: str) -> ast.ClassDef:
        """A class."""
        found = self.find(module, name)
        assert isinstance(found, ast.ClassDef), f"{module}.{name} is no class"
        return found


def _names(statement: ast.stmt) -> set[str]:
    if isinstance(statement, ast.ClassDef | ast.FunctionDef):
        return {statement.name}
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    targets = [statement.target] if isinstance(statement, ast.AnnAssign) else targets
    return {target.id for target in targets if isinstance(target, ast.Name)}


def _members(definition: ast.ClassDef) -> set[str]:
    """Methods and annotated or assigned names of a class, and what its methods put on self."""
    direct = set().union(*(_names(statement) for statement in definition.body))
    stored = {
        one.attr
        for one in ast.walk(definition)
        if isinstance(one, ast.Attribute) and isinstance(one.ctx, ast.Store) and ast.unparse(one.value) == "self"
    }
    return direct | stored


def _method(definition: ast.ClassDef, name: str) -> ast.FunctionDef | None:
    return next((one for one in definition.body if isinstance(one, ast.FunctionDef) and one.name == name), None)


def _parameters(function: ast.FunctionDef) -> list[str]:
    return [argument.arg for argument in function.args.args]


@pytest.fixture(scope="module", params=RELEASES)
def vllm(request: pytest.FixtureRequest, vllm_tree: Callable[[str], Path]) -> Source:
    return Source(vllm_tree(request.param))


def plugin(file: str) -> ast.Module:
    return ast.parse((PLUGIN / file).read_text(encoding="utf-8"))


def imported(file: str) -> dict[str, tuple[str, str]]:
    """What a file of the plugin imports from vLLM: by its name there, the module and the name in it."""
    return {
        alias.asname or alias.name: (statement.module, alias.name)
        for statement in ast.walk(plugin(file))
        if isinstance(statement, ast.ImportFrom) and statement.module and statement.module.split(".")[0] == "vllm"
        for alias in statement.names
    }


@pytest.mark.parametrize("file", FILES)
def test_every_imported_name_is_there(vllm: Source, file: str) -> None:
    missing = [f"{module}.{name}" for module, name in imported(file).values() if vllm.find(module, name) is None]
    assert missing == []


def _overridden(vllm: Source, file: str) -> Iterator[tuple[str, ast.FunctionDef, ast.FunctionDef]]:
    """The plugin's methods that exist in vLLM's base class, with that one; a mix-in's count for its partner's base."""
    names, classes = imported(file), [one for one in plugin(file).body if isinstance(one, ast.ClassDef)]
    by_name = {one.name: one for one in classes}
    for definition in classes:
        bases = [ast.unparse(base) for base in definition.bases]
        own = [definition, *(by_name[base] for base in bases if base in by_name)]
        for base in (name for name in bases if name in names):
            upstream = vllm.class_(*names[base])
            for method in (one for part in own for one in part.body if isinstance(one, ast.FunctionDef)):
                if (there := _method(upstream, method.name)) is not None:
                    yield f"{definition.name}.{method.name}", method, there


@pytest.mark.parametrize(("file", "most"), [("linear.py", 5), ("moe.py", 5)])
def test_overridden_methods_take_the_same_arguments(vllm: Source, file: str, most: int) -> None:
    found = list(_overridden(vllm, file))
    assert len({name for name, *_ in found}) >= most
    for name, own, there in found:
        if own.args.vararg is not None:
            assert _parameters(own) == _parameters(there)[: len(_parameters(own))], name
        else:
            assert _parameters(own) == _parameters(there), name


def _asked(file: str, *objects: str) -> set[str]:
    """The attributes that a file reads of these expressions."""
    return {
        one.attr
        for one in ast.walk(plugin(file))
        if isinstance(one, ast.Attribute) and ast.unparse(one.value) in objects
    }


def test_every_field_that_is_read_is_there(vllm: Source) -> None:
    moe = _asked("moe.py", "moe", "self.moe")
    assert "experts_per_token" in moe
    assert moe <= _members(vllm.class_(CONFIG, "FusedMoEConfig"))
    parallel = _asked("moe.py", "moe.moe_parallel_config")
    assert parallel == {"enable_eplb"}
    assert parallel <= _members(vllm.class_(CONFIG, "FusedMoEParallelConfig"))
    experts = "vllm.model_executor.layers.fused_moe.routed_experts"
    layer = _members(vllm.class_(experts, "RoutedExperts"))
    assert {"activation", "expert_map", "apply_router_weight_on_input", "layer_name"} <= layer
    # A clamped or scaled SwiGLU is known by these, and stays with vLLM.
    assert {"swiglu_limit", "swiglu_alpha", "swiglu_beta"} <= layer
    registry = "vllm.model_executor.kernels.linear"
    asked = _asked("linear.py", "registry")
    assert asked == {"init_nvfp4_linear_kernel", "register_linear_kernel", "_POSSIBLE_NVFP4_KERNELS"}
    for name in asked:
        assert vllm.find(registry, name) is not None, name


def _function(vllm: Source, module: str, name: str) -> ast.FunctionDef:
    found = vllm.find(module, name)
    assert isinstance(found, ast.FunctionDef), f"{module}.{name} is no function"
    return found


def test_the_compile_cache_is_keyed_by_the_table_of_variables_and_by_no_kernel(vllm: Source) -> None:
    """What compile_cache.py says of vLLM: why it writes into a table, and when it need not any more."""
    factors = _function(vllm, "vllm.envs", "compile_factors")
    assert "environment_variables.items()" in {
        ast.unparse(one.iter) for one in factors.body if isinstance(one, ast.For)
    }
    key = _function(vllm, "vllm.compilation.caching", "aot_compile_hash_factors")
    called = {ast.unparse(one.func) for one in ast.walk(key) if isinstance(one, ast.Call)}
    assert {"envs.compile_factors", "vllm_config.compute_hash"} <= called
    assert called <= {"envs.compile_factors", "vllm_config.compute_hash", "hash_factors", "get_inductor_factors"} | {
        "factors.append",
        "factors.extend",
    }
    # Nothing in vllm.envs adds to its table for others.
    functions = {one.name for one in vllm.module("vllm.envs").body if isinstance(one, ast.FunctionDef)}
    assert [name for name in functions if "register" in name or "add_" in name] == []
    copied = _method(vllm.class_("vllm.config.vllm", "VllmConfig"), "with_hf_config")
    assert copied is not None
    assert isinstance(copied.body[-1], ast.Return)
    assert ast.unparse(copied.body[-1]).startswith("return replace(self,")


def _table(file: str, name: str) -> ast.Dict:
    (found,) = (one for one in plugin(file).body if isinstance(one, ast.Assign | ast.AnnAssign) and name in _names(one))
    assert isinstance(found.value, ast.Dict)
    return found.value


def test_linear_kernels_lay_out_the_scales_as_the_plugin_believes(vllm: Source) -> None:
    table = ast.literal_eval(_table("linear.py", "TILED"))
    for name, tiled in table.items():
        kernel = vllm.class_("vllm.model_executor.kernels.linear", name)
        prepare = _method(kernel, "process_weights_after_loading")
        assert prepare is not None, name
        called = {ast.unparse(one.func).split(".")[-1] for one in ast.walk(prepare) if isinstance(one, ast.Call)}
        assert ("swizzle_blockscale" in called) == tiled, name
        assert called <= HARMLESS | {"swizzle_blockscale", "pad_nvfp4_weight_for_cutlass"}, name


def _read_of_layer(vllm: Source, function: ast.FunctionDef) -> set[str]:
    """What a function reads of its argument `layer`, itself and through the helpers that it hands it to."""
    read: set[str] = set()
    for parent in ast.walk(function):
        if not any(isinstance(child, ast.Name) and child.id == "layer" for child in ast.iter_child_nodes(parent)):
            continue
        if isinstance(parent, ast.Attribute):
            read.add(parent.attr)
        elif isinstance(parent, ast.Call) and ast.unparse(parent.func) == "getattr":
            read.add(ast.literal_eval(parent.args[1]))
        else:
            assert isinstance(parent, ast.Call), ast.unparse(parent)
            helpers = "vllm.model_executor.layers.quantization.utils.nvfp4_utils"
            read |= _read_of_layer(vllm, _function(vllm, helpers, ast.unparse(parent.func)))
    return read


def test_wrapped_kernels_find_all_that_they_read_of_a_layer(vllm: Source) -> None:
    calls = [one for one in ast.walk(plugin("linear.py")) if isinstance(one, ast.Call)]
    (stand_in,) = (one for one in calls if ast.unparse(one.func) == "SimpleNamespace")
    given = {one.arg for one in stand_in.keywords}
    for name in ast.literal_eval(_table("linear.py", "TILED")):
        apply = _method(vllm.class_("vllm.model_executor.kernels.linear", name), "apply_weights")
        assert apply is not None, name
        read = _read_of_layer(vllm, apply)
        assert {"weight", "weight_scale"} <= read, name
        assert read <= given, name


def test_the_entrypoint_knows_which_backends_leave_room_for_the_kernels(vllm: Source) -> None:
    oracle = _function(vllm, "vllm.model_executor.layers.fused_moe.oracle.nvfp4", "map_nvfp4_backend")
    (mapping,) = (one for one in ast.walk(oracle) if isinstance(one, ast.Dict))
    names = {
        ast.literal_eval(key): value.attr
        for key, value in zip(mapping.keys, mapping.values, strict=True)
        if isinstance(key, ast.Constant) and isinstance(value, ast.Attribute)
    }
    layouts = {ast.literal_eval(key) for key in _table("moe.py", "LAYOUTS").keys if key is not None}
    assert {"auto"} | {name for name, backend in names.items() if backend in layouts} == set(
        LEAVE_ROOM["--moe-backend"][1]
    )
    # A named backend filters the list in which the plugin's kernel is.
    chosen = _function(vllm, "vllm.model_executor.kernels.linear", "_resolve_backend_kernels")
    assert "if linear_backend == 'auto':\n    return kernels" in [ast.unparse(one) for one in chosen.body]
    assert LEAVE_ROOM["--linear-backend"][1] == ("auto",)


def test_backends_of_experts_lay_out_the_weights_as_the_plugin_believes(vllm: Source) -> None:
    table = _table("moe.py", "LAYOUTS")
    layouts = {
        ast.literal_eval(key): {one.arg: ast.literal_eval(one.value) for one in value.keywords}
        for key, value in zip(table.keys, table.values, strict=True)
        if isinstance(key, ast.Constant) and isinstance(value, ast.Call)
    }
    oracle = "vllm.model_executor.layers.fused_moe.oracle.nvfp4"
    backends = vllm.class_(oracle, "NvFp4MoeBackend")
    values = {
        one.targets[0].id: ast.literal_eval(one.value)
        for one in backends.body
        if isinstance(one, ast.Assign) and isinstance(one.targets[0], ast.Name)
    }
    assert {name: values.get(name) for name in layouts} == {name: name for name in layouts}
    prepare = vllm.find(
        "vllm.model_executor.layers.quantization.utils.flashinfer_fp4_moe", "prepare_nvfp4_moe_layer_for_fi_or_cutlass"
    )
    assert isinstance(prepare, ast.FunctionDef)
    (swaps,) = (
        one
        for one in prepare.body
        if isinstance(one, ast.If) and any("reorder_w1w3_to_w3w1" in ast.unparse(line) for line in one.body)
    )
    swapped = {
        one.attr
        for one in ast.walk(swaps.test)
        if isinstance(one, ast.Attribute) and ast.unparse(one.value) == "NvFp4MoeBackend"
    }
    for name, layout in layouts.items():
        assert layout["up_first"] == (name in swapped), name
        assert layout["tiled_scales"] == (name != "EMULATION"), name
