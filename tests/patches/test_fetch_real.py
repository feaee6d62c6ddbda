"""The pins tell the truth about upstream, and the configured package index serves what they say."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from sparkwright.patching.tree import read_archive
from sparkwright.pins import Line, PinnedFile, lines, load_line, load_releases, load_toolchain
from sparkwright.sources import fetch, unpack
from sparkwright.sources.index import Index

pytestmark = pytest.mark.sources

Tree = Callable[[str], Path]


@pytest.fixture(params=lines())
def line(request: pytest.FixtureRequest) -> Line:
    return load_line(request.param)


def test_every_clone_of_upstreams_cmake_is_pinned_as_upstream_has_it(line: Line, vllm_tree: Tree) -> None:
    tree = vllm_tree(line.name)
    for dependency in line.fetch_content:
        text = (tree / dependency.declared_in).read_text(encoding="utf-8")
        revision = dependency.commit or dependency.tag
        assert re.search(rf'(GIT_TAG|_TAG|_REVISION)\s+"?{revision}"?\s*\)?$', text, re.MULTILINE), dependency
        assert f"/{dependency.repository}" in text, dependency
        assert f"DEFINED ENV{{{dependency.variable}}}" in text, dependency
    declaring = {str(path.relative_to(tree)) for path in (tree / "cmake/external_projects").glob("*.cmake")}
    assert {dependency.declared_in for dependency in line.fetch_content} == declaring | {"CMakeLists.txt"}
    assert len(line.fetch_content) == len(declaring) + 1


def test_line_holds_the_releases_that_upstream_asks_for(line: Line, vllm_tree: Tree) -> None:
    wanted = (vllm_tree(line.name) / "requirements/cuda.txt").read_text(encoding="utf-8").splitlines()
    assert f"torch=={line.torch}" in wanted
    assert f"flashinfer-python=={line.component('flashinfer-python').version}" in wanted


def test_cutlass_headers_are_of_the_pinned_release(line: Line) -> None:
    version = f"{line.cutlass.path}/include/cutlass/version.h"
    utility = f"{line.cutlass.path}/tools/util/include/cutlass/util/packed_stride.hpp"
    headers = read_archive(fetch(line.cutlass_file()), {version, utility})
    text = (headers.read(version) or b"").decode()
    found = [re.search(rf"#define CUTLASS_{part} (\d+)", text) for part in ("MAJOR", "MINOR", "PATCH")]
    assert ".".join(match[1] for match in found if match) == line.cutlass.version
    assert headers.read(utility)


def test_index_serves_a_pinned_wheel_and_the_cache_serves_it_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARKWRIGHT_CACHE", str(tmp_path))
    for file in load_toolchain().component("nvidia-cuda-cuobjdump").files:
        assert fetch(file) == fetch(file, offline=True)
        root = unpack(fetch(file, offline=True), tmp_path / file.kind)
        assert (root / "nvidia/cu13/bin/cuobjdump").stat().st_mode & 0o111 == 0o111


@pytest.mark.long
def test_index_lists_every_pinned_file_with_the_pinned_hash() -> None:
    components = [*load_toolchain().components, *load_releases().components]
    components += [component for name in lines() for component in load_line(name).components]
    files: set[PinnedFile] = {file for component in components for file in component.files}
    with Index() as index:
        for file in sorted(files, key=lambda file: file.name):
            assert index.locate(file)
