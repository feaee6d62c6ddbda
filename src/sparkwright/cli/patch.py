"""`sparkwright patch`: which fixes a source tree needs, apply them, take them back, and the matrix over releases."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from sparkwright.errors import PatchDriftError, UsageError
from sparkwright.files import write_atomic, write_json
from sparkwright.patching.engine import Examination, apply_series, examine, revert_series, unified_diff
from sparkwright.patching.matrix import MATRIX_JSON, Grid, build_matrix, read_matrix
from sparkwright.patching.model import Status
from sparkwright.patching.pages import pages
from sparkwright.patching.receipt import RECEIPT
from sparkwright.patching.series import COMPONENTS, NamedPatch, load_series, select
from sparkwright.report import note, print_json, print_table

app = typer.Typer(
    help="Which fixes an upstream source tree needs; apply them, take them back, compare releases.",
    no_args_is_help=True,
)

ComponentOption = Annotated[str, typer.Option("--component", help=f"One of: {', '.join(COMPONENTS)}.")]
VersionOption = Annotated[str, typer.Option("--version", help="Release of the tree, for instance 0.33.0.")]
TreeOption = Annotated[Path, typer.Option("--tree", help="Unpacked source tree (sdist or wheel).")]
OnlyOption = Annotated[list[str] | None, typer.Option("--only", help="Only this patch; may be given several times.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts instead of a table.")]
DiffOption = Annotated[bool, typer.Option("--diff", help="Print the unified diff of what applying would change.")]


def _cell(grid: Grid, release: str, status: Status) -> str:
    """What needs attention by name, the rest as a number."""
    rows = grid.with_status(release, status)
    return ", ".join(row.name for row in rows) if status in (Status.NEEDED, Status.DRIFTED) else str(len(rows) or "")


def _chosen(component: str, only: list[str] | None) -> tuple[NamedPatch, ...]:
    return select(load_series(component), tuple(only or ()))


def _show(examination: Examination, *, json: bool, title: str) -> None:
    if examination.interrupted:
        note("an earlier run was interrupted after its commit point; the next apply or revert completes it")
    if json:
        print_json(examination.to_json())
        return
    print_table(
        f"{title}: {examination.component} {examination.version}, {examination.root}",
        ("patch", "status", "kind", "reason"),
        [
            (finding.patch.name, finding.status, finding.patch.patch.kind, finding.reason)
            for finding in examination.findings
        ],
    )


@app.command("list")
def list_patches(
    component: Annotated[str | None, typer.Option("--component", help="Only this component.")] = None,
    json: JsonOption = False,
) -> None:
    """List the patches: what each mends, for which releases, and when it can go."""
    named = [patch for one in ([component] if component else COMPONENTS) for patch in load_series(one)]
    if json:
        print_json(
            [
                {
                    "name": one.name,
                    "component": one.component,
                    "title": one.patch.title,
                    "releases": one.patch.releases,
                    "kind": one.patch.kind,
                    "category": one.patch.category,
                    "reference": one.patch.reference,
                    "remove_when": one.patch.remove_when,
                    "guarded_by": one.patch.guarded_by,
                    "explanation": one.explanation,
                }
                for one in named
            ]
        )
        return
    print_table(
        "Patches",
        ("component", "patch", "releases", "kind", "what it mends"),
        [(one.component, one.name, one.patch.releases or "all", one.patch.kind, one.patch.title) for one in named],
    )


@app.command()
def status(
    component: ComponentOption,
    version: VersionOption,
    tree: TreeOption,
    only: OnlyOption = None,
    json: JsonOption = False,
    diff: DiffOption = False,
) -> None:
    """Say what each patch is to a tree; changes nothing. Ends with 3 when one is drifted."""
    examination = examine(tree, component, version, series=_chosen(component, only))
    if diff:
        sys.stdout.write(unified_diff(examination))
    else:
        _show(examination, json=json, title="Patch status")
    if examination.drifted:
        names = ", ".join(finding.patch.name for finding in examination.drifted)
        raise PatchDriftError(
            f"drifted: {names}",
            remedy="see the reasons above; docs/patches.md tells how a patch is refreshed",
        )


@app.command()
def apply(
    component: ComponentOption,
    version: VersionOption,
    tree: TreeOption,
    only: OnlyOption = None,
    json: JsonOption = False,
    diff: DiffOption = False,
) -> None:
    """Apply what is needed, or change nothing at all. Doing it twice is the same as once."""
    if diff:
        sys.stdout.write(unified_diff(examine(tree, component, version, series=_chosen(component, only))))
    examination = apply_series(tree, component, version, series=_chosen(component, only))
    if not diff:
        _show(examination, json=json, title="Patched")
    applied = sum(finding.status is Status.APPLIED for finding in examination.findings)
    note(f"{applied} of {len(examination.findings)} patches are applied; the receipt is {tree / RECEIPT}")


@app.command()
def revert(component: ComponentOption, version: VersionOption, tree: TreeOption, json: JsonOption = False) -> None:
    """Give every byte back."""
    _show(revert_series(tree, component, version), json=json, title="Reverted")


@app.command()
def matrix(
    release: Annotated[
        list[str] | None, typer.Option("--release", help="Only this one, as component=version; several are possible.")
    ] = None,
    write: Annotated[bool, typer.Option("--write", help="Write docs/patch-matrix.* and the pages made of it.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Compare with the stored matrix.")] = False,
    json: JsonOption = False,
) -> None:
    """Run the whole series against upstream releases (their sources are fetched when needed)."""
    made = build_matrix(release or ())
    if write:
        if release:
            raise UsageError("--write needs every release", remedy="leave --release out")
        write_json(MATRIX_JSON, made.model_dump(mode="json"))
        for path, text in pages(made).items():
            write_atomic(path, text)
            note(f"wrote {path}")
    if check:
        stored = read_matrix()
        for grid in made.grids:
            if grid != stored.grid(grid.component).only(grid.releases):
                raise PatchDriftError(
                    f"the stored matrix of {grid.component} is not what the sources say",
                    cause="a patch changed since the matrix was written",
                    remedy="run `sparkwright patch matrix --write` and look at the difference",
                )
    if json:
        print_json(made.model_dump(mode="json"))
    else:
        for grid in made.grids:
            print_table(
                f"Patch matrix: {grid.component}",
                ("release", *Status),
                [(release, *(_cell(grid, release, status) for status in Status)) for release in grid.releases],
            )
    made.require_no_drift()
