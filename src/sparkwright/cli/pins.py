"""`sparkwright pins`: what is pinned, whether every copy agrees, and the lock files made from it."""

from typing import Annotated

import typer

from sparkwright.errors import ConfigurationError, UsageError
from sparkwright.files import write_atomic
from sparkwright.image import arguments
from sparkwright.image.base import current_digest
from sparkwright.image.docker import Docker
from sparkwright.paths import CHECKOUT, PINS
from sparkwright.pins import base, default_line, load_line, load_toolchain
from sparkwright.pins.copies import Copy, copies
from sparkwright.pins.lock import lock as make_lock
from sparkwright.pins.lock import lock_names
from sparkwright.report import note, print_json, print_table

app = typer.Typer(
    help="What is pinned, and whether everything made from the pins agrees with them.", no_args_is_help=True
)

LineOption = Annotated[str | None, typer.Option("--line", help="Release line; the newest when not given.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts instead of a table.")]


@app.command("dockerfile")
def write_dockerfile() -> None:
    """Make the ARG block of the Dockerfile anew; for maintainers."""
    path = arguments.dockerfile()
    write_atomic(path, arguments.with_argument_block(path.read_text(encoding="utf-8")))
    note(f"made the ARG block of {path.name} from pins/ and patches/")


@app.command()
def update(
    what: Annotated[str, typer.Argument(help="What to pin anew: base, the image that the Dockerfile starts from.")],
) -> None:
    """Pin the digest that the base image has in its registry now, when the pinned one is gone; needs Docker."""
    if what != "base":
        raise UsageError(
            f"{what} is not updated by a command", remedy="write its version and hashes into pins/ by hand"
        )
    pinned = base.load_base()
    digest = current_digest(Docker(), pinned.image)
    if digest == pinned.digest:
        note(f"{pinned.image} still has the pinned digest {digest}")
        return
    path = PINS / "base.toml"
    write_atomic(path, path.read_text(encoding="utf-8").replace(pinned.digest, digest))
    write_dockerfile()
    note(f"{pinned.image}: {pinned.digest} is now {digest}")
    note("say in `why` of pins/base.toml where it came from, then build: the tests of the image decide")


@app.command()
def show(line: LineOption = None, json: JsonOption = False) -> None:
    """Show what a release line and the toolchain are made of."""
    pins = load_line(line or default_line())
    toolchain = load_toolchain()
    if json:
        print_json({"line": pins.model_dump(mode="json"), "toolchain": toolchain.model_dump(mode="json")})
        return
    for title, components in ((f"Release line {pins.name}", pins.components), ("Toolchain", toolchain.components)):
        print_table(
            title,
            ("component", "version", "kind", "MB", "licence", "why this version"),
            [
                (
                    component.name,
                    component.version,
                    file.kind,
                    f"{file.size / 1e6:.1f}",
                    component.licence,
                    component.why,
                )
                for component in components
                for file in component.files
            ],
        )
    print_table(
        f"What upstream's CMake of {pins.name} would clone",
        ("name", "repository", "revision", "taken from a folder by"),
        [(one.name, one.repository, one.commit or one.tag, one.variable) for one in pins.fetch_content],
    )
    print_table(
        "Build",
        ("what", "value"),
        [
            ("TORCH_CUDA_ARCH_LIST", ";".join(pins.arch_list)),
            ("torch", pins.torch),
            ("CUTLASS headers", f"{pins.cutlass.version} from {pins.cutlass_file().name}: {pins.cutlass.why}"),
            ("requirements", ", ".join(pins.requirements) or "none"),
            ("native units", ", ".join(pins.native_units) or f"none: {pins.why}"),
        ],
    )


@app.command()
def check(json: JsonOption = False) -> None:
    """Compare every generated copy with the pins; ends with 78 when one differs."""
    everything = (*copies(), Copy(path=arguments.dockerfile(), differences=arguments.differences))
    findings = [(str(copy.path.relative_to(CHECKOUT)), list(copy.differences())) for copy in everything]
    if json:
        print_json([{"path": path, "agrees": not found, "differences": found} for path, found in findings])
    else:
        print_table(
            "Copies of the pins",
            ("file", "result"),
            [(path, "; ".join(found) or "agrees") for path, found in findings],
        )
    wrong = [f"{path} {one}" for path, found in findings for one in found]
    if wrong:
        raise ConfigurationError(
            "\n".join(wrong),
            cause="a copy was edited by hand, or the pins were changed and the copy was not made anew",
            remedy="correct pins/, or run `sparkwright pins lock` for the files of requirements/,"
            " `sparkwright pins dockerfile` for the Dockerfile",
        )


@app.command()
def lock(
    names: Annotated[
        list[str] | None, typer.Argument(help="Files of requirements/, such as dev.txt; all by default.")
    ] = None,
    upgrade: Annotated[bool, typer.Option("--upgrade", help="Take newer releases where nothing pins them.")] = False,
) -> None:
    """Make the hash-locked requirement files anew; for maintainers, needs the package index."""
    for name in names or lock_names():
        note(f"locked {make_lock(name, upgrade=upgrade).relative_to(CHECKOUT)}")
