"""`sparkwright about`: what the image holds, or, in a checkout, what it would be built from."""

import json as json_format
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from sparkwright.doctor import about as inventory
from sparkwright.doctor.about import About
from sparkwright.doctor.installed import Installed
from sparkwright.native.build_report import pins_digest
from sparkwright.native.layout import layout
from sparkwright.pins import Line, default_line, load_line
from sparkwright.report import note, print_json, print_table


def about(
    write: Annotated[
        Path | None,
        typer.Option("--write", metavar="FILE", help="Take the inventory of what is installed, and store it."),
    ] = None,
    line: Annotated[str | None, typer.Option("--line", help="Release line; the newest when not given.")] = None,
    revision: Annotated[str, typer.Option("--revision", help="With --write: the commit of the checkout.")] = "",
    json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts instead of tables.")] = False,
) -> None:
    """Show what the image holds: releases, patches, modules compiled ahead, what still compiles, caches, licences.

    In a checkout, without an image around it, show the pins and the latest host build.
    """
    pins = load_line(line or default_line())
    if write is not None:
        inventory.write(write, inventory.gather(pins, Installed.here(), revision=revision, environment=os.environ))
        note(f"the inventory is {write}")
        return
    stored = inventory.read(inventory.location())
    caches = inventory.caches(os.environ)
    if stored is None:
        _show_checkout(pins, caches, json=json)
    elif json:
        print_json({"image": stored.model_dump(mode="json"), "caches": caches})
    else:
        _show_image(stored, caches)


def _show_image(stored: About, caches: list[dict[str, Any]]) -> None:
    print_table(
        f"sparkwright {stored.sparkwright}: vLLM {stored.line} for GB10",
        ("what", "value"),
        [
            ("built", stored.built),
            ("revision", stored.revision or "not told"),
            ("vLLM commit", stored.vllm_commit or "not told by upstream"),
            ("pins", stored.pins),
            ("architectures", ", ".join(stored.arch_list)),
            ("licences", ", ".join(stored.licences) or "no file found"),
        ],
    )
    print_table("Releases", ("package", "version"), sorted(stored.versions.items()))
    print_table(
        "Patches",
        ("component", "patch", "status", "reason"),
        [(one.component, one.name, one.status, one.reason) for one in stored.patches],
    )
    print_table(
        "FlashInfer modules compiled ahead",
        ("module", "MB"),
        [(one.name, f"{one.size / 1e6:.1f}") for one in stored.jit_modules] or [("none", "")],
    )
    print_table(
        "Compiled at first use",
        ("what", "when", "kept in the cache of"),
        [(one.what, one.when, one.kept_in) for one in stored.compiles_at_first_use],
    )
    _show_caches(caches)


def _show_checkout(pins: Line, caches: list[dict[str, Any]], *, json: bool) -> None:
    report = _host_build(layout(pins.name).report)
    versions = {component.name: component.version for component in pins.components}
    if json:
        print_json(
            {
                "image": None,
                "line": pins.name,
                "pins": pins_digest(),
                "arch_list": list(pins.arch_list),
                "versions": versions,
                "host_build": report,
                "caches": caches,
            }
        )
        return
    totals = report["totals"] if report else {}
    built = (
        f"{report['unit']}, {report['finished']}: {totals['objects']} objects, {totals['fp4_mma']} FP4 tensor-core "
        f"instructions, {len(report['failures'])} failures"
        if report
        else "none: ./build.sh --host makes one"
    )
    print_table(
        f"A checkout, no image: vLLM {pins.name}",
        ("what", "value"),
        [
            ("pins", pins_digest()),
            ("architectures", ", ".join(pins.arch_list)),
            ("torch", pins.torch),
            *versions.items(),
            ("latest host build", built),
        ],
    )
    _show_caches(caches)


def _host_build(path: Path) -> dict[str, Any] | None:
    try:
        found = json_format.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _show_caches(caches: list[dict[str, Any]]) -> None:
    print_table(
        "Caches",
        ("of", "folder", "can be written", "moved by"),
        [(one["name"], one["path"], "yes" if one["writable"] else "no", one["moved_by"]) for one in caches],
    )
