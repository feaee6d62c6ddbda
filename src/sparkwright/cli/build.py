"""`sparkwright build`: what build.sh hands over to once .venv/ is there."""

import signal
from types import FrameType
from typing import Annotated

import typer

from sparkwright.cli import image
from sparkwright.errors import UsageError
from sparkwright.image.build import Request
from sparkwright.image.preflight import SPARK_PLATFORM
from sparkwright.native import build_report, host
from sparkwright.native.jobs import default_jobs
from sparkwright.native.layout import layout
from sparkwright.native.units import UNITS, unit
from sparkwright.native.wheel import Externals, choose_externals
from sparkwright.paths import CHECKOUT
from sparkwright.pins import Line, default_line, load_line
from sparkwright.report import note, print_json, print_table

HostOption = Annotated[bool, typer.Option("--host", help="Build on this machine, without Docker and without a GPU.")]
LineOption = Annotated[str | None, typer.Option("--line", help="Release line; by default the newest.")]
UnitsOption = Annotated[
    str | None,
    typer.Option("--units", help=f"What to compile: {', '.join(UNITS)}. By default nvfp4 with --host, else native."),
]
JobsOption = Annotated[
    int | None, typer.Option("--jobs", min=1, help="Compilers at once; by default as memory allows.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the report as JSON instead of a table.")]

_HOST = "With --host"
CheckOption = Annotated[
    bool, typer.Option("--check", help="Stop when the sources are patched and verified.", rich_help_panel=_HOST)
]
WheelOption = Annotated[
    bool,
    typer.Option("--wheel", help="Make the installable wheel too; implies --units native.", rich_help_panel=_HOST),
]


def build(
    *,
    on_host: HostOption = False,
    line: LineOption = None,
    units: UnitsOption = None,
    jobs: JobsOption = None,
    dry_run: DryRunOption = False,
    json: JsonOption = False,
    check: CheckOption = False,
    wheel: WheelOption = False,
    tag: image.TagOption = "",
    extra: image.WithOption = "",
    externals: image.ExternalsOption = "",
    on: image.OnOption = "",
    platform: image.PlatformOption = SPARK_PLATFORM,
    no_cache: image.NoCacheOption = False,
    progress: image.ProgressOption = image.Progress.plain,
    network: image.NetworkOption = "",
    arguments: image.ArgOption = None,
    list_images: image.ListOption = False,
    verify_reproducible: image.VerifyOption = False,
) -> None:
    """Build the image with Docker, and test it; or, with --host, build vLLM on this machine without Docker.

    Both fetch the pinned sources, patch them, compile with vLLM's own CMake, and audit the machine code. Only what
    changed is done again. The reports are build/LINE/image.json and, with --host, build/LINE/report.json.
    """
    pins = load_line(line or default_line())
    signal.signal(signal.SIGTERM, _interrupt)
    if on_host:
        docker_only = {
            "--tag": tag,
            "--with": extra,
            "--on": on,
            "--no-cache": no_cache,
            "--network": network,
            "--arg": arguments,
            "--list": list_images,
            "--verify-reproducible": verify_reproducible,
        }
        _refuse({name for name, value in docker_only.items() if value}, "builds an image; with --host none is made")
        if externals and not wheel:
            raise UsageError("--externals is about what goes into a wheel", remedy="give --wheel too, or leave it out")
        _build_on_host(
            pins,
            units or "nvfp4",
            check=check,
            wheel=wheel,
            externals=choose_externals(externals or Externals.WHEEL),
            jobs=jobs,
            dry_run=dry_run,
            json=json,
        )
        return
    _refuse({name for name, value in (("--check", check), ("--wheel", wheel)) if value}, "belongs to --host")
    if list_images:
        image.show_images(on=on, line=line, json=json)
        return
    image.build_with_docker(
        Request(
            line=pins,
            tag=tag,
            units=unit(units).name if units else "",
            jobs=jobs,
            no_cache=no_cache,
            on=on,
            progress=progress.value,
            network=network,
            platform=platform,
            extra=extra,
            externals=externals,
            overrides=tuple(arguments or ()),
        ),
        dry_run=dry_run,
        verify_reproducible=verify_reproducible,
        json=json,
    )


def _refuse(names: set[str], why: str) -> None:
    if names:
        raise UsageError(f"{', '.join(sorted(names))} {why}", remedy="leave it out, or see ./build.sh --help")


def _build_on_host(
    pins: Line,
    units: str,
    *,
    check: bool,
    wheel: bool,
    externals: Externals,
    jobs: int | None,
    dry_run: bool,
    json: bool,
) -> None:
    if check and wheel:
        raise UsageError("--check compiles nothing, so there is no wheel", remedy="leave one of them out")
    chosen, count = unit("native" if wheel else units), jobs or default_jobs()
    if dry_run:
        steps = host.plan(pins, None if check else chosen, jobs=count, wheel=wheel, externals=externals)
        if json:
            print_json([{"step": name, "what": what} for name, what in steps])
        else:
            print_table(f"What ./build.sh --host would do for vLLM {pins.name}", ("step", "what"), steps)
        return
    if check:
        _show_check(host.check(pins), json=json)
        return
    report = host.build(pins, chosen, jobs=count, wheel=wheel, externals=externals)
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
