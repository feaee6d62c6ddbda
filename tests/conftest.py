"""What tests of every kind share: real upstream sources, patched copies of them, and the toolchain."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from sparkwright.native.toolchain import toolchain
from sparkwright.patching.engine import apply_series
from sparkwright.patching.series import load_series, select
from sparkwright.paths import cache
from sparkwright.pins import PinnedFile, load_line, load_releases
from sparkwright.pins.model import FileKind
from sparkwright.sources import fetch, unpack

Patched = Callable[[str, str, Sequence[str]], Path]


def _unpacked(file: PinnedFile) -> Path:
    """The pristine tree of an archive, unpacked once into the cache; tests only read it."""
    return unpack(
        fetch(file), cache() / "trees" / f"{file.project}-{file.version}-{file.kind}-{file.sha256[:12]}", reuse=True
    )


@pytest.fixture(scope="session")
def cuda_home() -> Path:
    """The CUDA toolchain from the pinned wheels: nvcc, cuobjdump, headers."""
    return toolchain()


@pytest.fixture(scope="session")
def vllm_tree() -> Callable[[str], Path]:
    """The unpacked source distribution of a vLLM release, by version."""
    return lambda version: _unpacked(load_releases().component("vllm", version).file("sdist"))


@pytest.fixture(scope="session")
def flashinfer_tree() -> Callable[[str, FileKind], Path]:
    """The unpacked FlashInfer release, by version and kind of file (`sdist` or `wheel-any`)."""

    def tree(version: str, kind: FileKind = "sdist") -> Path:
        if kind == "sdist":
            return _unpacked(load_releases().component("flashinfer-python", version).file("sdist"))
        line = {"0.7.2.post1": "0.33.0", "0.6.3": "0.16.0"}[version]
        return _unpacked(load_line(line).component("flashinfer-python").file(kind))

    return tree


@pytest.fixture
def patched(
    tmp_path: Path, vllm_tree: Callable[[str], Path], flashinfer_tree: Callable[[str, FileKind], Path]
) -> Patched:
    """A copy of a pristine tree with exactly the named patches applied: patched(component, version, names)."""

    def make(component: str, version: str, names: Sequence[str]) -> Path:
        source = vllm_tree(version) if component == "vllm" else flashinfer_tree(version, "sdist")
        target = tmp_path / f"{component}-{version}-{'+'.join(names)}"
        shutil.copytree(source, target, symlinks=True)
        apply_series(target, component, version, series=select(load_series(component), tuple(names)))
        return target

    return make
