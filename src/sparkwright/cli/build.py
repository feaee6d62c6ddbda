"""`sparkwright build`: what build.sh hands over to once .venv/ is there."""

import signal
from types import FrameType
from typing import Annotated

import typer

from sparkwright.errors import UsageError
from sparkwright.native import build_report, host
from sparkwright.native.jobs import default_jobs
from sparkwright.native.layout import layout
from sparkwright.native.units import UNITS, unit
from sparkwright.paths import CHECKOUT
from sparkwright.pins import default_line, load_line
from sparkwright.report import note, print_json, print_table

HostOption = Annotated[bool, typer.Option("--host", help="Build on this machine, without Docker and without a GPU.")]
LineOption = Annotated[str | None, typer.Option("--line", help="Release line; by default the newest.")]
UnitsOption = Annotated[str, typer.Option("--units", help=f"What to compile: {', '.join(UNITS)}.")]
CheckOption = Annotated[bool, typer.Option("--check", help="Stop when the sources are patched and verified.")]
WheelOption = Annotated[bool, typer.Option("--wheel", help="Make the installable wheel too; implies --units native.")]
JobsOption = Annotated[
    int | None, typer.Option("--jobs", min=1, help="Compilers at once; by default as memory allows.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the report as JSON instead of a table.")]


def build(
    *,
    on_host: HostOption = False,
    line: LineOption = None,
    units: UnitsOption = "nvfp4",
    check: CheckOption = False,
    wheel: WheelOption = False,
    jobs: JobsOption = None,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
) -> None:
    """Build vLLM for GB10 from pinned sources: fetch, patch, compile with vLLM's own CMake, and audit the machine code.

    Only what changed is compiled again, and an interrupted build goes on where it stopped. The report is
    build/LINE/report.json.
    """
    if not on_host:
        raise UsageError("say where to build", remedy="give --host: build on this machine, without Docker or a GPU")
    if check and wheel:
        raise UsageError("--check compiles nothing, so there is no wheel", remedy="leave one of them out")
    pins, chosen, count = load_line(line or default_line()), unit("native" if wheel else units), jobs or default_jobs()
    if dry_run:
        steps = host.plan(pins, None if check else chosen, jobs=count, wheel=wheel)
        if json:
            print_json([{"step": name, "what": what} for name, what in steps])
        else:
            print_table(f"What ./build.sh --host would do for vLLM {pins.name}", ("step", "what"), steps)
        return
    signal.signal(signal.SIGTERM, _interrupt)
    if check:
        _show_check(host.check(pins), json=json)
        return
    report = host.build(pins, chosen, jobs=count, wheel=wheel)
    if json:
        print_json(report.to_json())
    else:
        build_report.show(report)
        note(f"the report is {layout(pins.name).report.relative_to(CHECKOUT)}")


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    # As Ctrl-C: ninja is told to end, and what is finished stays.
    raise KeyboardInterrupt


def _show_check(sources: host.Sources, *, json: bool) -> None:
    found = [finding for examination in sources.examinations.values() for finding in examination.findings]
    if json:
        print_json(
            {
                "files_verified": sources.files_verified,
                "patches": [entry for examination in sources.examinations.values() for entry in examination.to_json()],
            }
        )
        return
    print_table(
        "Patched and verified",
        ("component", "patch", "status", "reason"),
        [(one.patch.component, one.patch.name, one.status, one.reason) for one in found],
    )
    note(f"{sources.files_verified} files that patches may touch are the pinned ones, or as the receipt says")
