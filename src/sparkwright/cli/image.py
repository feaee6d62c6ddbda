"""The image: `sparkwright image` says what is in it, `build` without --host makes it, `push` publishes it."""

import shlex
import signal
import sys
from enum import StrEnum
from types import FrameType
from typing import Annotated

import typer

from sparkwright.errors import ConfigurationError, UnavailableError, UsageError
from sparkwright.image.build import EXTRAS, Request, build_image, plan
from sparkwright.image.docker import Docker
from sparkwright.image.inventory import load_inventory, make_inventory, write_inventory
from sparkwright.image.licences import notice_differences, stated_licences, write_notice
from sparkwright.image.listing import held_images, remove, superseded
from sparkwright.image.push import Delivery, check_destinations, deliver, pushable
from sparkwright.image.record import latest_path, sbom_path
from sparkwright.image.reproduce import compare_with_rebuild
from sparkwright.image.size import size_report
from sparkwright.paths import CHECKOUT
from sparkwright.pins import default_line, load_line
from sparkwright.report import note, print_json, print_table
from sparkwright.run import end_children

_DOCKER = "With Docker"


class Progress(StrEnum):
    """What --progress takes."""

    plain = "plain"
    tty = "tty"
    quiet = "quiet"


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


TagOption = Annotated[
    str, typer.Option("--tag", help="Name the image; by default LINE-REVISION.", rich_help_panel=_DOCKER)
]
WithOption = Annotated[
    str, typer.Option("--with", help=f"An option with a lock of its own: {', '.join(EXTRAS)}.", rich_help_panel=_DOCKER)
]
ExternalsOption = Annotated[
    str,
    typer.Option(
        "--externals",
        help="FlashAttention 2 comes from the official wheel. wheel: as it is, PTX that the driver compiles at first "
        "use; compiled: with that PTX compiled for 12.1a, about an hour of one core the first time.",
    ),
]
OnOption = Annotated[
    str, typer.Option("--on", metavar="USER@HOST", help="Build on another Spark, over ssh.", rich_help_panel=_DOCKER)
]
PlatformOption = Annotated[
    str, typer.Option("--platform", help="What the image is for; the build runs natively.", rich_help_panel=_DOCKER)
]
NoCacheOption = Annotated[bool, typer.Option("--no-cache", help="Do every step anew.", rich_help_panel=_DOCKER)]
ProgressOption = Annotated[
    Progress, typer.Option("--progress", help="How BuildKit shows its progress.", rich_help_panel=_DOCKER)
]
NetworkOption = Annotated[
    str,
    typer.Option(
        "--network",
        metavar="host",
        help="The network of the build's steps, where Docker's own one does not reach the package index.",
        rich_help_panel=_DOCKER,
    ),
]
ArgOption = Annotated[
    list[str] | None,
    typer.Option("--arg", metavar="NAME=VALUE", help="Set a further ARG of the Dockerfile.", rich_help_panel=_DOCKER),
]
ListOption = Annotated[
    bool, typer.Option("--list", help="List the images there are, to roll back to.", rich_help_panel=_DOCKER)
]
VerifyOption = Annotated[
    bool,
    typer.Option(
        "--verify-reproducible", help="Build once more from nothing and name what differs.", rich_help_panel=_DOCKER
    ),
]


def build_with_docker(request: Request, *, dry_run: bool, verify_reproducible: bool, json: bool) -> None:
    """Build and test the image, or say how."""
    if request.extra and request.extra not in EXTRAS:
        raise UsageError(f"--with {request.extra} is unknown", remedy=f"known are: {', '.join(EXTRAS)}")
    if not request.line.native_units:
        raise UsageError(f"there is no image of line {request.line.name}", cause=request.line.why)
    if dry_run:
        chosen = plan(request)
        if json:
            print_json({"reference": chosen.reference, "argv": ["docker", *chosen.argv], "on": request.on})
        else:
            note(f"# {chosen.reference}{f' on {request.on}' if request.on else ''}")
            print(shlex.join(["docker", *chosen.argv]))
        return
    record = build_image(request)
    differences = compare_with_rebuild(request, record) if verify_reproducible else None
    if json:
        print_json(record.model_dump(mode="json") | {"tested": record.tested, "differences": differences})
        return
    sbom = sbom_path(record.line, record.tag)
    print_table(
        f"{record.tag}: {record.size / 1e9:.2f} GB, {record.seconds / 60:.0f} min",
        ("layer made by", "MB"),
        [(layer.created_by[:110], f"{layer.size / 1e6:.1f}") for layer in record.layers],
    )
    print_table(
        f"Its {_SHOWN} largest packages",
        ("package", "version", "MB"),
        [(one.name, one.version, f"{one.size / 1e6:.1f}") for one in record.packages[:_SHOWN]],
    )
    print_table("Tests", ("test", "result"), [(one.name, "passed") for one in record.checks])
    note(f"the report is {latest_path(record.line).relative_to(CHECKOUT)}")
    note(f"the bill of materials is {sbom.relative_to(CHECKOUT)}")
    if differences:
        print_table("A second build differs in", ("layer", "what"), differences)
    elif differences is not None:
        note("a second build from nothing has the same layers")


def show_images(*, on: str, line: str | None, json: bool) -> None:
    """List what there is to roll back to."""
    images = held_images(Docker(host=on), line=line)
    if json:
        print_json([one.to_json() for one in images])
        return
    print_table(
        "Images of sparkwright",
        ("image", "made from", "commit of", "GB", "tested here"),
        [
            (one.reference, one.revision[:8], one.created, f"{one.size / 1e9:.2f}", "yes" if one.tested else "no")
            for one in images
        ],
    )
    if images:
        note(f"any of them runs by its name: docker run ... {images[-1].reference} serve")


def push(
    *,
    image: Annotated[str, typer.Argument(help="The tag; by default the image that was built last.")] = "",
    to: Annotated[
        list[str] | None,
        typer.Option("--to", metavar="WHERE", help="registry/name, or ssh://user@node; may be given several times."),
    ] = None,
    line: LineOption = None,
    keep: Annotated[
        int | None, typer.Option("--keep", min=1, help="Then remove all but the N newest images of the line here.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before images are removed.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    json: JsonOption = False,
) -> None:
    """Publish a tested image to a registry, or carry it to other machines over ssh.

    Refused are images that were not tested, or failed, or were made from uncommitted files.
    """
    name, destinations, docker = line or default_line(), tuple(to or ()), Docker()
    if not destinations and keep is None:
        raise UsageError("say where to push to", remedy="--to registry/name, --to ssh://user@node, or --keep N")
    check_destinations(destinations)
    signal.signal(signal.SIGTERM, _interrupt)
    deliveries: tuple[Delivery, ...] = ()
    if destinations:
        docker.require_engine()
        record = pushable(docker, name, image)
        if dry_run:
            for destination in destinations:
                note(f"would send {record.tag} ({record.size / 1e9:.2f} GB) to {destination}")
        else:
            deliveries = deliver(docker, record, destinations)
    removed = _prune(docker, name, keep, yes=yes, dry_run=dry_run) if keep is not None else ()
    if json:
        print_json({"deliveries": [one.to_json() for one in deliveries], "removed": list(removed)})
    elif deliveries:
        print_table(
            "Delivered",
            ("to", "as", "digest or image id", "GB sent", "result"),
            [
                (
                    one.to,
                    one.reference,
                    one.digest,
                    f"{one.sent / 1e9:.2f}" if one.sent else "",
                    one.error or one.note or "done",
                )
                for one in deliveries
            ],
        )
    if failed := [one for one in deliveries if one.error]:
        raise UnavailableError(
            f"{len(failed)} of {len(deliveries)} destinations did not get the image: "
            + "; ".join(one.to for one in failed),
            cause=failed[0].error,
            remedy="mend it and run the same command again: what is there already is not sent again",
        )


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    # As Ctrl-C, which reaches the programs that send as well: alone they would go on and finish.
    end_children()
    raise KeyboardInterrupt


def _is_asked() -> bool:
    return sys.stdin.isatty()


def _prune(docker: Docker, line: str, keep: int, *, yes: bool, dry_run: bool) -> tuple[str, ...]:
    old = superseded(held_images(docker, line=line), keep=keep)
    if not old:
        note(f"there are no more than {keep} images of {line}: nothing to remove")
        return ()
    for one in old:
        note(f"{one.reference} ({one.size / 1e9:.2f} GB, {one.created})")
    if dry_run:
        return ()
    if not yes:
        if not _is_asked():
            raise UsageError("nobody is there to be asked whether to remove images", remedy="give --yes")
        typer.confirm(f"Remove these {len(old)}?", abort=True, err=True)
    return remove(docker, old)


@app.command()
def inventory(
    line: LineOption = None,
) -> None:
    """Read sizes and licences of the locked aarch64 wheels from the package index and store them; for maintainers."""
    pins = load_line(line or default_line())
    note(f"wrote {write_inventory(make_inventory(pins)).relative_to(CHECKOUT)}")


@app.command()
def licences(
    write: Annotated[bool, typer.Option("--write", help="Make the list in NOTICE anew; for maintainers.")] = False,
    json: JsonOption = False,
) -> None:
    """Show the licence that each locked package of the image states; ends with 78 when NOTICE lists others."""
    if write:
        write_notice()
    found = stated_licences(load_inventory(default_line()))
    if json:
        print_json(
            [{"project": project, "version": version, "licence": licence} for project, version, licence in found]
        )
    elif not write:
        print_table("Licences of the packages in the image", ("package", "version", "licence"), found)
    for sentence in notice_differences():
        raise ConfigurationError(f"NOTICE: {sentence}")
