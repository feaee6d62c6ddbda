"""What the evidence of native patches needs: vLLM's own CMake, and a compiler with torch's and CUTLASS's headers."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tests.patches.device_code import DeviceCompiler
from tests.patches.upstream_cmake import UpstreamCMake

from sparkwright.native.compiler import host_compiler
from sparkwright.native.environment import BuildEnvironment, build_environment
from sparkwright.native.source import cutlass_headers
from sparkwright.patching.engine import apply_series
from sparkwright.patching.model import Status
from sparkwright.patching.plan import examine_series
from sparkwright.patching.series import load_series, select
from sparkwright.patching.tree import DirectoryTree
from sparkwright.paths import cache
from sparkwright.pins import default_line, load_line
from sparkwright.pins.model import FileKind

PatchedBuild = Callable[[str, Sequence[str]], Path]
PatchedFlashInfer = Callable[[str, FileKind, str], Path]

_BUILD_INPUTS = (
    *("CMakeLists.txt", "setup.py", "cmake", "csrc", "requirements", "tools"),
    *("vllm/__init__.py", "vllm/envs.py"),
)


@pytest.fixture
def patched_build(tmp_path: Path, vllm_tree: Callable[[str], Path]) -> PatchedBuild:
    """A copy of what vLLM's build reads, a twentieth of the tree, with exactly the named patches applied."""

    def make(version: str, names: Sequence[str]) -> Path:
        target = tmp_path / f"vllm-{version}-{'+'.join(names)}"
        for name in _BUILD_INPUTS:
            source = vllm_tree(version) / name
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target / name, symlinks=True)
            else:
                shutil.copy2(source, target / name)
        apply_series(target, "vllm", version, series=select(load_series("vllm"), tuple(names)))
        return target

    return make


@pytest.fixture
def patched_flashinfer(tmp_path: Path, flashinfer_tree: Callable[[str, FileKind], Path]) -> PatchedFlashInfer:
    """A folder with only the files that one patch changes in a FlashInfer release, as it leaves them."""

    def make(version: str, kind: FileKind, name: str) -> Path:
        target = tmp_path / f"flashinfer-{version}-{kind}-{name}"
        series = select(load_series("flashinfer"), (name,))
        (found,) = examine_series(series, DirectoryTree(flashinfer_tree(version, kind)), version)
        assert found.status is Status.NEEDED
        for path, content in found.changes.items():
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            (target / path).write_bytes(content)
        return target

    return make


@pytest.fixture(scope="session")
def build_env() -> BuildEnvironment:
    """The environment that compiles the default line: CMake, torch, CUDA."""
    return build_environment(load_line(default_line()), host_compiler(), cache() / "envs" / "tests.log")


@pytest.fixture(scope="session")
def build_python(build_env: BuildEnvironment) -> Path:
    """A Python with the torch of the default line, which runs on the CPU here."""
    return build_env.python


@pytest.fixture
def upstream_cmake(build_env: BuildEnvironment, tmp_path: Path) -> UpstreamCMake:
    """Runs the CMake code of a vLLM tree."""
    scratch = tmp_path / "cmake"
    scratch.mkdir()
    return UpstreamCMake(program=build_env.tool("cmake"), scratch=scratch)


@pytest.fixture
def device_compiler(build_env: BuildEnvironment, tmp_path: Path) -> DeviceCompiler:
    """Compiles files of vLLM as its own build does, with torch's and CUTLASS's headers."""
    cutlass = cutlass_headers(load_line(default_line()))
    torch = build_env.python.parent.parent.glob("lib/python3.*/site-packages/torch/include")
    (torch_include,) = torch
    return DeviceCompiler(
        cuda_home=build_env.cuda_home,
        include=(
            cutlass / "include",
            cutlass / "tools" / "util" / "include",
            torch_include,
            torch_include / "torch" / "csrc" / "api" / "include",
        ),
        scratch=tmp_path,
    )
