"""The whole series against many upstream releases: which release needs what.

Sources are read inside their archives, so nothing is unpacked. The result is data; `pages` renders it.
"""

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from sparkwright.errors import InputUnreadableError, PatchDriftError
from sparkwright.patching.model import Status
from sparkwright.patching.plan import examine_series
from sparkwright.patching.series import NamedPatch, load_series
from sparkwright.patching.shell import ShellPatch
from sparkwright.patching.tree import marker, read_archive
from sparkwright.paths import DOCS
from sparkwright.pins import PinnedFile, load_releases
from sparkwright.report import progress
from sparkwright.sources import fetch

MATRIX_JSON = DOCS / "patch-matrix.json"

PROJECTS = {"vllm": "vllm", "flashinfer": "flashinfer-python"}
"""The name in pins/releases.toml of each component that has releases; the CUDA toolkit is checked in place."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Cell(_Model):
    """What one patch is to one release, and why."""

    status: Status
    reason: str


class Row(_Model):
    """One patch over all releases of its component."""

    name: str
    title: str
    kind: str
    category: str
    cells: dict[str, Cell]


class Grid(_Model):
    """All patches of one component over its releases, oldest release first."""

    component: str
    releases: tuple[str, ...]
    rows: tuple[Row, ...]

    def with_status(self, release: str, status: Status) -> tuple[Row, ...]:
        """The patches that have this status in a release."""
        return tuple(row for row in self.rows if row.cells[release].status is status)

    def only(self, releases: Sequence[str]) -> "Grid":
        """The same grid with fewer releases."""
        kept = tuple(release for release in self.releases if release in releases)
        rows = tuple(row.model_copy(update={"cells": {name: row.cells[name] for name in kept}}) for row in self.rows)
        return self.model_copy(update={"releases": kept, "rows": rows})


class Matrix(_Model):
    """The grids of all components that have releases."""

    grids: tuple[Grid, ...]

    def grid(self, component: str) -> Grid:
        """The grid of one component."""
        return next(grid for grid in self.grids if grid.component == component)

    def drifted(self) -> list[str]:
        """Component, release and patch of every drifted cell."""
        return [
            f"{grid.component} {release}: {row.name}: {row.cells[release].reason}"
            for grid in self.grids
            for release in grid.releases
            for row in grid.with_status(release, Status.DRIFTED)
        ]

    def require_no_drift(self) -> None:
        """Raise PatchDriftError, naming every drifted cell, unless there is none."""
        if found := self.drifted():
            raise PatchDriftError(
                "the series does not know these sources:\n" + "\n".join(f"  {line}" for line in found),
                remedy="mend the patch as CONTRIBUTING.md says, then run the matrix again",
            )


def _column(series: Sequence[NamedPatch], component: str, archive: PinnedFile) -> dict[str, Cell]:
    paths = {path for named in series for path in named.paths()} | {marker(component)}
    tree = read_archive(fetch(archive), paths)
    if tree.read(marker(component)) is None:
        raise InputUnreadableError(f"{archive.name} is not a source of {component}: it has no {marker(component)}")
    findings = examine_series(series, tree, archive.version)
    return {found.patch.name: Cell(status=found.status, reason=found.reason) for found in findings}


def build_matrix(only: Sequence[str] = ()) -> Matrix:
    """Examine every pinned release, or only those named as `component=version`; sources are fetched on demand."""
    pinned = load_releases()
    wanted = [
        (component, release.file("sdist"))
        for component, project in PROJECTS.items()
        for release in pinned.of(project)
        if not only or f"{component}={release.version}" in only
    ]
    columns: dict[tuple[str, str], dict[str, Cell]] = {}
    with progress() as display:
        task = display.add_task("patch matrix", total=len(wanted))
        for component, archive in wanted:
            series = [named for named in load_series(component) if not isinstance(named.patch, ShellPatch)]
            columns[component, archive.version] = _column(series, component, archive)
            display.advance(task)
    grids = []
    for component in PROJECTS:
        releases = tuple(archive.version for owner, archive in wanted if owner == component)
        rows = tuple(
            Row(
                name=named.name,
                title=named.patch.title,
                kind=named.patch.kind,
                category=named.patch.category,
                cells={release: columns[component, release][named.name] for release in releases},
            )
            for named in load_series(component)
            if not isinstance(named.patch, ShellPatch)
        )
        grids.append(Grid(component=component, releases=releases, rows=rows))
    return Matrix(grids=tuple(grids))


def read_matrix(path: Path = MATRIX_JSON) -> Matrix:
    """The stored matrix.

    Raises:
        InputUnreadableError: it is missing or was not written by this tool.
    """
    try:
        return Matrix.model_validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputUnreadableError(
            f"{path} cannot be read as a patch matrix: {error}", remedy="run `sparkwright patch matrix --write`"
        ) from error
