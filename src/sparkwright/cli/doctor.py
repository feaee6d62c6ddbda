"""`sparkwright doctor`: is this machine, this image and this GPU as it must be?"""

from collections.abc import Iterator
from itertools import groupby
from typing import Annotated

import typer

from sparkwright.doctor.examination import examine
from sparkwright.doctor.machine import Machine
from sparkwright.doctor.model import Report, Verdict
from sparkwright.pins import default_line, load_line
from sparkwright.report import note, print_json, print_table

FAILED = 1


def doctor(
    line: Annotated[str | None, typer.Option("--line", help="Release line; the newest when not given.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts instead of a table.")] = False,
) -> None:
    """Check the machine, what is installed, and the GPU where there is one.

    Ends with 0 when no check failed; warnings and skipped checks are no failures. Ends with 1 when one failed.
    """
    report = examine(Machine(), load_line(line or default_line()), doing=lambda what: note(f"checking: {what}"))
    if json:
        print_json(report.to_json())
    else:
        _show(report)
    if report.failed:
        raise typer.Exit(FAILED)


def _rows(report: Report) -> Iterator[tuple[str, str, str]]:
    """One row for each check; those that were skipped one after the other for the same reason share one."""
    for (verdict, shown), group in groupby(report.results, key=lambda one: (one.verdict, one.found or one.reason)):
        names = [one.name for one in group]
        if verdict is Verdict.SKIPPED:
            yield "\n".join(names), verdict, shown
        else:
            yield from ((name, verdict, shown) for name in names)


def _show(report: Report) -> None:
    print_table("Doctor", ("check", "verdict", "found"), list(_rows(report)))
    for one in report.results:
        if one.verdict in (Verdict.WARN, Verdict.FAIL):
            print(f"{one.verdict}: {one.name}: {one.reason}")
            if one.remedy:
                print(f"  What to do: {one.remedy}")
    counts = report.to_json()["counts"]
    print(", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict if counts[verdict]))
