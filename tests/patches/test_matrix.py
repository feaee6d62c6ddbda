"""The stored matrix and the pages made of it say what the sources say."""

import pytest

from sparkwright.patching.matrix import build_matrix, read_matrix
from sparkwright.patching.model import Status
from sparkwright.patching.pages import pages
from sparkwright.patching.series import load_series
from sparkwright.patching.shell import ShellPatch
from sparkwright.pins import lines, load_releases

CHECKED = (
    "vllm=0.16.0",
    "vllm=0.19.1",
    "vllm=0.24.0",
    "vllm=0.28.0",
    "vllm=0.33.0",
    "flashinfer=0.6.3",
    "flashinfer=0.6.4",
    "flashinfer=0.7.2.post1",
)


@pytest.mark.sources
def test_the_stored_matrix_is_what_the_sources_say() -> None:
    stored, made = read_matrix(), build_matrix(CHECKED)
    for grid in made.grids:
        assert grid.releases
        assert grid == stored.grid(grid.component).only(grid.releases)


@pytest.mark.long
@pytest.mark.sources
def test_the_whole_stored_matrix_is_what_the_sources_say() -> None:
    assert build_matrix() == read_matrix()


def test_the_stored_matrix_covers_every_pinned_release_and_patch_without_drift() -> None:
    matrix = read_matrix()
    matrix.require_no_drift()
    for grid, project in zip(matrix.grids, ("vllm", "flashinfer-python"), strict=True):
        assert grid.releases == tuple(release.version for release in load_releases().of(project))
        series = [named for named in load_series(grid.component) if not isinstance(named.patch, ShellPatch)]
        assert [row.name for row in grid.rows] == [named.name for named in series]
    assert set(lines()) <= set(matrix.grid("vllm").releases)


def test_no_patch_is_dead() -> None:
    """A patch that no release of the matrix needs, and that is no detector or setting, changes nothing for anyone."""
    matrix = read_matrix()
    for grid in matrix.grids:
        for row in grid.rows:
            named = next(one for one in load_series(grid.component) if one.name == row.name)
            if getattr(named.patch, "variants", ()):
                assert any(cell.status is Status.NEEDED for cell in row.cells.values()), f"no release needs {row.name}"


def test_the_generated_pages_are_as_the_stored_matrix_makes_them() -> None:
    for path, text in pages(read_matrix()).items():
        assert path.read_text(encoding="utf-8") == text, f"{path}: run `sparkwright patch matrix --write`"
