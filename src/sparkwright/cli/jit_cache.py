"""`sparkwright jit-cache`: FlashInfer's kernel modules, compiled ahead so that the first start does not have to."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from sparkwright.native import jit_build
from sparkwright.native.jit_modules import choose, load_modules
from sparkwright.pins import default_line, load_line
from sparkwright.report import note, print_json, print_table

app = typer.Typer(
    help="FlashInfer's kernel modules, compiled ahead so that the first start does not have to.", no_args_is_help=True
)

LineOption = Annotated[str | None, typer.Option("--line", help="Release line; the newest when not given.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts instead of a table.")]


@app.command("list")
def list_modules(line: LineOption = None, json: JsonOption = False) -> None:
    """List the modules that are compiled ahead, and why."""
    modules = load_modules(load_line(line or default_line())).modules
    if json:
        print_json([module.model_dump(mode="json") for module in modules])
        return
    print_table(
        "FlashInfer modules compiled ahead",
        ("module", "why", "asked for by", "must show", "MB to compile"),
        [(one.name, one.why, one.asked_by, ", ".join(one.require), one.peak_mb) for one in modules],
    )


@app.command()
def build(
    line: LineOption = None,
    python: Annotated[
        Path, typer.Option("--python", help="The Python that has the patched FlashInfer, torch and CUDA's compiler.")
    ] = Path(sys.executable),
    modules: Annotated[str, typer.Option("--modules", help="Names, separated by commas; all when not given.")] = "",
    jobs: Annotated[
        int | None, typer.Option("--jobs", min=1, help="Compilers at once; by default as memory allows.")
    ] = None,
    work: Annotated[
        Path | None, typer.Option("--work", help="Where objects are kept, so that a later run goes on there.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Compile modules, audit their machine code, and put them where FlashInfer looks first.

    No GPU is needed. A module whose machine code does not run on 12.1 is not installed, and the command ends with 4.
    """
    pins = load_line(line or default_line())
    names = tuple(name.strip() for name in modules.split(",") if name.strip())
    chosen = choose(load_modules(pins), names)
    report = jit_build.build(pins, chosen, python=python, jobs=jobs, work=work)
    if json:
        print_json(report.model_dump(mode="json"))
        return
    print_table(
        f"FlashInfer {report.flashinfer} for {', '.join(report.arch_list)}",
        ("module", "objects", "CPU s", "MB to compile", "MB", "done"),
        [
            (
                one.name,
                one.objects,
                f"{one.cpu_seconds:.0f}",
                one.peak_mb,
                f"{one.size / 1e6:.1f}",
                "compiled" if one.compiled else "kept",
            )
            for one in report.modules
        ],
    )
    note(f"they lie in {report.folder}")
