"""The licences of all that the image takes from elsewhere, and the list of them in NOTICE."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from sparkwright.files import write_atomic
from sparkwright.image.inventory import Entry, Inventory, load_inventory
from sparkwright.paths import CHECKOUT
from sparkwright.pins import default_line, load_toolchain

NOTICE: Final[Path] = CHECKOUT / "NOTICE"
BEGIN: Final = "The image holds these packages, with the licence that each states"
"""How the generated part of NOTICE begins; all that follows belongs to it."""


def stated_licences(inventory: Inventory) -> tuple[tuple[str, str, str], ...]:
    """Package, release and licence of all locked packages; what a wheel does not state, pins/ may."""
    pinned = {component.project: component.licence for component in load_toolchain().components}
    return tuple((one.project, one.version, _licence(one, pinned)) for one in inventory.entries)


def _licence(entry: Entry, pinned: dict[str, str]) -> str:
    return pinned.get(entry.project, entry.licence) if entry.licence == "not stated" else entry.licence


def notice(text: str, line: str) -> str:
    """The text of NOTICE with its list made anew."""
    kept = text.partition(BEGIN)[0].rstrip("\n")
    rows = [f"  {project} {version}: {licence}" for project, version, licence in stated_licences(load_inventory(line))]
    title = f"{BEGIN} (vLLM {line}; made by `sparkwright image licences --write`):"
    return "\n".join([kept, "", title, "", *rows, ""])


def notice_differences() -> Sequence[str]:
    """What is wrong with the list in NOTICE: nothing, or one sentence."""
    text = NOTICE.read_text(encoding="utf-8")
    if text == notice(text, default_line()):
        return ()
    return ("its list of licences is not that of the locked packages; run `sparkwright image licences --write`",)


def write_notice() -> None:
    """Make the list in NOTICE anew."""
    write_atomic(NOTICE, notice(NOTICE.read_text(encoding="utf-8"), default_line()))
