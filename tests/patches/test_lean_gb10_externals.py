"""vLLM's configure clones its external projects whatever the target; a lean one clones none and builds all of csrc/."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.patches.conftest import PatchedBuild
from tests.patches.upstream_cmake import UpstreamCMake

from sparkwright.run import run

pytestmark = [pytest.mark.sources, pytest.mark.compiles]

NAME = "lean-gb10-externals"
VERSIONS = ["0.16.0", "0.24.0", "0.33.0"]

# setup.py run with torch and the plugins of the build replaced: tells which extension modules it declares, what it
# passes to CMake, and which folders it copies afterwards.
PROBE = """
import json, os, shutil, subprocess, sys, types
from types import SimpleNamespace
import setuptools

tree, cuda_home = sys.argv[1:]
os.chdir(tree)
sys.path.insert(0, tree)

def module(name, **contents):
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(contents)

cpp = SimpleNamespace(CUDA_HOME=cuda_home, ROCM_HOME=None)
module("torch", version=SimpleNamespace(cuda="13.0", hip=None, xpu=None), utils=SimpleNamespace(cpp_extension=cpp))
module("torch.utils", cpp_extension=cpp)
module("torch.utils.cpp_extension", CUDA_HOME=cuda_home, ROCM_HOME=None)
module("setuptools_scm", get_version=lambda **_: "0")
module(
    "setuptools_rust",
    Binding=SimpleNamespace(PyO3=0, Exec=1),
    RustExtension=lambda target, **named: SimpleNamespace(target={"": target}, **named),
    Strip=SimpleNamespace(No=0, All=1),
)
module("setuptools_rust.build", build_rust=type("build_rust", (), {}))

declared = {}
setuptools.setup = lambda **given: declared.update(given)
os.environ.update(VLLM_TARGET_DEVICE="cuda", VLLM_VERSION_OVERRIDE="0", SETUPTOOLS_SCM_PRETEND_VERSION="0")
os.environ["MAX_JOBS"] = "1"
sys.argv = ["setup.py"]
script = {"__name__": "__main__", "__file__": os.path.join(tree, "setup.py")}
exec(compile(open("setup.py").read(), "setup.py", "exec"), script)

cmake, copied = [], []
builder = script["cmake_build_ext"]
command = builder.__new__(builder)
vars(command).update(debug=False, build_temp=tree, build_lib="build_lib")
subprocess.check_call = lambda words, **_: cmake.extend(words)
command.configure(declared["ext_modules"][0])
shutil.copytree = lambda source, *_, **__: copied.append(source)
setuptools.command.build_ext.build_ext.run = lambda self: None
command.run()
print(json.dumps({"modules": [m.name for m in declared["ext_modules"]], "cmake": cmake, "copied": copied}))
"""

IN_CSRC = {
    "0.16.0": {"_C", "_moe_C", "cumem_allocator"},
    "0.24.0": {"_C_stable_libtorch", "_moe_C_stable_libtorch", "cumem_allocator", "spinloop"},
    "0.33.0": {"_C_stable_libtorch", "_moe_C_stable_libtorch", "cumem_allocator", "spinloop", "fs_io_C"},
}


@pytest.mark.parametrize("version", VERSIONS)
def test_configure_clones_before_it_looks_at_the_target_and_lean_does_not(
    version: str, vllm_tree: Callable[[str], Path], patched_build: PatchedBuild, upstream_cmake: UpstreamCMake
) -> None:
    stock = upstream_cmake.configure(vllm_tree(version), "12.1a")
    assert stock.clones == ("triton_kernels",)
    assert "configure would clone triton_kernels" in stock.error
    tree = patched_build(version, [NAME])
    full = upstream_cmake.configure(tree, "12.1a")
    assert (full.clones, full.code, full.sources) == (stock.clones, stock.code, stock.sources)
    lean = upstream_cmake.configure(tree, "12.1a", lean=True)
    assert (lean.clones, lean.error) == ((), "")
    assert (lean.code, lean.sources, lean.defines) == (stock.code, stock.sources, stock.defines)


@pytest.mark.parametrize("version", VERSIONS)
def test_setup_declares_only_what_lean_configure_defines(
    version: str, patched_build: PatchedBuild, cuda_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def probe(tree: Path, lean: str) -> tuple[set[str], list[str], list[str]]:
        monkeypatch.setenv("VLLM_LEAN", lean)
        monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
        told = json.loads(run([sys.executable, "-c", PROBE, tree, cuda_home]).splitlines()[-1])
        return {name.removeprefix("vllm.") for name in told["modules"]}, told["cmake"], told["copied"]

    stock, _, copied = probe(patched_build(version, ["refuse-plain-sm12x"]), "1")
    assert {"triton_kernels", "vllm_flash_attn._vllm_fa2_C"} < stock
    assert any("triton_kernels" in folder for folder in copied)
    tree = patched_build(version, [NAME])
    full, words, copied = probe(tree, "0")
    assert (full, "-DVLLM_LEAN=ON" in words) == (stock, False)
    assert any("triton_kernels" in folder for folder in copied)
    lean, words, copied = probe(tree, "1")
    assert lean == IN_CSRC[version]
    assert lean < stock
    assert "-DVLLM_LEAN=ON" in words
    assert not any("triton_kernels" in folder for folder in copied)
