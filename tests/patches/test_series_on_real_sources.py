"""The engine's promises, kept on the real pinned sources with the whole series."""

import contextlib
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sparkwright.errors import PatchDriftError
from sparkwright.patching.engine import apply_series, examine, revert_series
from sparkwright.patching.model import (
    AddFile,
    Computed,
    EditMismatchError,
    Patch,
    Replace,
    Status,
    Variant,
    covers,
)
from sparkwright.patching.plan import edited, examine_series
from sparkwright.patching.series import load_series
from sparkwright.patching.shell import ShellPatch
from sparkwright.patching.tree import DirectoryTree, OverlayTree, Tree
from sparkwright.pins import lines, load_line, load_releases
from sparkwright.pins.model import FileKind

pytestmark = pytest.mark.sources

MUTATIONS_PER_ANCHOR = 12


def _contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("version", lines())
def test_apply_twice_then_revert_gives_every_byte_back(
    version: str, vllm_tree: Callable[[str], Path], tmp_path: Path
) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(vllm_tree(version), tree, symlinks=True)
    before = _contents(tree)
    applied = apply_series(tree, "vllm", version)
    assert {found.status for found in applied.findings} <= {Status.APPLIED, Status.UPSTREAM, Status.NOT_APPLICABLE}
    assert Status.APPLIED in {found.status for found in applied.findings}
    after = _contents(tree)
    assert after != before
    apply_series(tree, "vllm", version)
    assert _contents(tree) == after
    revert_series(tree, "vllm", version)
    assert _contents(tree) == before


def _matching(patch: Patch | ShellPatch, version: str, tree: Tree) -> Variant:
    """The variant whose edits the tree asks for."""
    assert isinstance(patch, Patch)
    for variant in patch.variants:
        if covers(variant.releases, version):
            with contextlib.suppress(EditMismatchError):
                edited(variant, tree)
                return variant
    raise AssertionError(f"no variant of {patch.title} matches {version}")


def _anchors(variant: Variant) -> Iterator[tuple[str, str]]:
    for edit in variant.edits:
        if isinstance(edit, Replace):
            yield edit.path, edit.old
        elif not isinstance(edit, AddFile | Computed):
            yield edit.path, edit.anchor


def _series_and_trees(
    vllm_tree: Callable[[str], Path], flashinfer_tree: Callable[[str, FileKind], Path]
) -> Iterator[tuple[str, str, Path]]:
    for version in lines():
        yield "vllm", version, vllm_tree(version)
        yield (
            "flashinfer",
            load_line(version).component("flashinfer-python").version,
            flashinfer_tree(load_line(version).component("flashinfer-python").version, "sdist"),
        )


def test_any_changed_byte_inside_an_anchor_is_drift(
    vllm_tree: Callable[[str], Path], flashinfer_tree: Callable[[str, FileKind], Path]
) -> None:
    chance = random.Random(0)
    tried = 0
    for component, version, root in _series_and_trees(vllm_tree, flashinfer_tree):
        series = load_series(component)
        tree = DirectoryTree(root)
        needed = {f.patch.name for f in examine_series(series, tree, version) if f.status is Status.NEEDED}
        for number, named in enumerate(series):
            if named.name not in needed:
                continue
            before = OverlayTree(tree)
            for earlier in examine_series(series[:number], tree, version):
                before.changes.update(earlier.changes)
            for path, anchor in _anchors(_matching(named.patch, version, before)):
                content = before.read(path)
                if content is None or anchor.encode() not in content:
                    continue  # an edit before it in the same patch makes this anchor
                start = content.index(anchor.encode())
                for _ in range(MUTATIONS_PER_ANCHOR):
                    changed = bytearray(content)
                    changed[start + chance.randrange(len(anchor.encode()))] ^= chance.randrange(1, 256)
                    view = OverlayTree(before, {path: bytes(changed)})
                    (found,) = examine_series([named], view, version)
                    assert found.status is Status.DRIFTED, f"{named.name} {version}: {found.status}: {found.reason}"
                    tried += 1
    assert tried > 500


def test_one_changed_anchor_stops_everything(vllm_tree: Callable[[str], Path], tmp_path: Path) -> None:
    version = lines()[0]
    tree = tmp_path / "tree"
    shutil.copytree(vllm_tree(version), tree, symlinks=True)
    cmake = tree / "CMakeLists.txt"
    cmake.write_text(cmake.read_text(encoding="utf-8").replace("CUDA_SUPPORTED_ARCHS", "CUDA_SUPPORTED_ARCH"))
    before = _contents(tree)
    with pytest.raises(PatchDriftError):
        apply_series(tree, "vllm", version)
    assert _contents(tree) == before
    assert any(found.status is Status.DRIFTED for found in examine(tree, "vllm", version).findings)


def test_every_release_has_a_source() -> None:
    for project in ("vllm", "flashinfer-python"):
        for release in load_releases().of(project):
            assert release.file("sdist").size > 1_000_000
