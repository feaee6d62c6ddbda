"""`sparkwright image`: what is in the image, how large it is, and what the Dockerfile's stages call."""

from pathlib import Path
from typing import Annotated

import typer

from sparkwright.image.contents import load_contents
from sparkwright.image.contents import slim as slim_folder
from sparkwright.image.inventory import make_inventory, write_inventory
from sparkwright.image.size import size_report
from sparkwright.paths import CHECKOUT
from sparkwright.pins import default_line, load_line
from sparkwright.report import note, print_json, print_table

app = typer.Typer(help="What is in the image, and how large it is.", no_args_is_help=True)

LineOption = Annotated[str | None, typer.Option("--line", help="Release line; by default the newest.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts instead of a table.")]
_SHOWN = 25


@app.command()
def size(
    line: LineOption = None,
    everything: Annotated[bool, typer.Option("--all", help=f"List all packages, not the {_SHOWN} largest.")] = False,
    json: JsonOption = False,
) -> None:
    """Show how large the image for a DGX Spark is, by layer and by package, computed from the locked aarch64 wheels.

    Ends with 5 when it is more than a tenth larger than recorded. Needs neither Docker nor network.
    """
    report = size_report(line or default_line())
    if json:
        print_json(report.to_json())
    else:
        print_table(
            f"The image of vLLM {report.line} for arm64, layer by layer",
            ("layer", "packages", "MB unpacked", "MB zstd"),
            [
                *(
                    (one.name, one.packages or "", f"{one.size / 1e6:.0f}", f"{one.zstd / 1e6:.0f}")
                    for one in report.layers
                ),
                ("all", len(report.packages), f"{report.size / 1e6:.0f}", f"{report.zstd / 1e6:.0f}"),
            ],
        )
        print_table(
            "Its packages" if everything else f"Its {_SHOWN} largest packages",
            ("package", "version", "MB kept", "MB left out"),
            [
                (one.project, one.version, f"{one.kept / 1e6:.1f}", f"{one.removed / 1e6:.1f}" if one.removed else "")
                for one in (report.packages if everything else report.packages[:_SHOWN])
            ],
        )
    report.require_recorded()


@app.command()
def slim(
    site_packages: Annotated[Path, typer.Argument(help="The folder that the locked packages were installed into.")],
    line: LineOption = None,
) -> None:
    """Take out of installed packages what requirements/image-LINE.toml lists; the Dockerfile calls this."""
    freed = slim_folder(site_packages, load_contents(line or default_line()))
    note(f"{freed / 1e6:.1f} MB taken out of {site_packages}")


@app.command()
def inventory(
    line: LineOption = None,
) -> None:
    """Read sizes and licences of the locked aarch64 wheels from the package index and store them; for maintainers."""
    pins = load_line(line or default_line())
    note(f"wrote {write_inventory(make_inventory(pins)).relative_to(CHECKOUT)}")
