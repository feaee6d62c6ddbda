"""The stored list of what the image's locked wheels for a DGX Spark hold: sizes and licences.

It is read from the package index once per lock, by `sparkwright image inventory`, so that the size of the image is
known and gated, and NOTICE is written, on any machine and without network.
"""

import json
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from sparkwright.audit import elf
from sparkwright.errors import ConfigurationError, InputUnreadableError
from sparkwright.files import sha256_bytes, sha256_file, write_atomic
from sparkwright.image.contents import DEBUG_SECTIONS, Contents, contents_path, load_contents
from sparkwright.image.locked import Locked, read_lock
from sparkwright.image.target import SPARK
from sparkwright.image.wheels import WheelListing, list_wheels, read_member
from sparkwright.paths import REQUIREMENTS
from sparkwright.pins import Line
from sparkwright.report import note

_PACKED_LEVEL: Final = 6  # what wheels are packed with


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One wheel; sizes in bytes, `packed` ones as deflated in the wheel."""

    project: str
    version: str
    wheel: str
    sha256: str
    files: int
    size: int
    packed: int
    removed: int
    removed_packed: int
    licence: str

    @property
    def kept(self) -> int:
        """What of it is in the image."""
        return self.size - self.removed

    @property
    def kept_packed(self) -> int:
        """The same, deflated."""
        return self.packed - self.removed_packed


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """All wheels, the official vLLM wheel in place of ours, and the paths that two of them write differently."""

    line: str
    made_from: dict[str, str]
    entries: tuple[Entry, ...]
    contested: dict[str, tuple[str, ...]]

    def differences(self) -> tuple[str, ...]:
        """One sentence for each source that has changed since the list was made."""
        now = _sources(self.line)
        return tuple(
            f"was made from another {name}; run `sparkwright image inventory`"
            for name, digest in self.made_from.items()
            if now.get(name) != digest
        )


def inventory_path(line: str) -> Path:
    """Where the list of a line is stored."""
    return REQUIREMENTS / f"image-{line}.wheels.json"


def lock_name(line: str, extra: str = "") -> str:
    """The lock file that an image is made from; `extra` is the option that it is built with."""
    return f"image-{line}-{extra}.txt" if extra else f"image-{line}.txt"


def load_inventory(line: str) -> Inventory:
    """The stored list of a line.

    Raises:
        InputUnreadableError: there is none, or it is damaged.
    """
    path = inventory_path(line)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return Inventory(
            line=line,
            made_from=data["made_from"],
            entries=tuple(Entry(**entry) for entry in data["wheels"]),
            contested={name: tuple(owners) for name, owners in data["contested"].items()},
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputUnreadableError(
            f"{path} cannot be read: {error}", remedy="run `sparkwright image inventory` to make it anew"
        ) from error


def make_inventory(line: Line) -> Inventory:
    """Read the list from the package index; raises as `list_wheels`, or when something to remove is not there."""
    contents = load_contents(line.name)
    official = line.component("vllm").file("wheel-aarch64")
    vllm = Locked(project="vllm", version=line.name, sha256=frozenset({official.sha256}))  # type: ignore[arg-type]
    locked = read_lock(REQUIREMENTS / lock_name(line.name), SPARK)
    note(f"reading the tables of contents of {len(locked) + 1} wheels from the package index")
    listings = list_wheels((*locked, vllm), SPARK)
    return Inventory(
        line=line.name,
        made_from=_sources(line.name),
        entries=tuple(_entry(listing, contents) for listing in sorted(listings, key=lambda one: one.project)),
        contested=_contested(listings),
    )


def write_inventory(inventory: Inventory) -> Path:
    """Store a list, one wheel per line."""
    path = inventory_path(inventory.line)
    wheels = ",\n".join(f"  {json.dumps(asdict(entry), ensure_ascii=False)}" for entry in inventory.entries)
    text = (
        f'{{\n"made_from": {json.dumps(inventory.made_from)},\n'
        f'"contested": {json.dumps(inventory.contested)},\n"wheels": [\n{wheels}\n]\n}}\n'
    )
    write_atomic(path, text)
    return path


def _sources(line: str) -> dict[str, str]:
    lock, contents = REQUIREMENTS / lock_name(line), contents_path(line)
    # Not the whole file: the recorded size stands there too, and is written down after this list was made.
    selections = load_contents(line).model_dump_json(include={"removed", "stripped", "unbuilt"})
    return {lock.name: sha256_file(lock), contents.name: sha256_bytes(selections.encode())}


def _entry(listing: WheelListing, contents: Contents) -> Entry:
    sizes = {file.path: (file.size, file.packed) for file in listing.files}
    gone: set[str] = set()
    for selection in (*contents.removed, *contents.unbuilt):
        if selection.project == listing.project:
            gone |= selection.pick(sizes)
    size, packed = (sum(sizes[path][part] for path in gone) for part in (0, 1))
    for selection in contents.stripped:
        if selection.project == listing.project:
            for path in selection.pick(sizes):
                debug, debug_packed = _debug_information(listing, path)
                size, packed = size + debug, packed + debug_packed
    return Entry(
        project=listing.project,
        version=listing.version,
        wheel=listing.name,
        sha256=listing.sha256,
        files=len(sizes),
        size=sum(one for one, _ in sizes.values()),
        packed=listing.size,
        removed=size,
        removed_packed=packed,
        licence=listing.licence,
    )


def _debug_information(listing: WheelListing, path: str) -> tuple[int, int]:
    data = memoryview(read_member(listing, path))
    found = [section for section in elf.sections(data, path) if section.name.startswith(DEBUG_SECTIONS)]
    if not found:
        raise ConfigurationError(
            f"{path} of {listing.project} has no debug information to strip",
            remedy="remove it from requirements/image-<line>.toml",
        )
    packed = sum(len(zlib.compress(data[one.offset : one.offset + one.size], _PACKED_LEVEL)) for one in found)
    return sum(section.size for section in found), packed


def _contested(listings: tuple[WheelListing, ...]) -> dict[str, tuple[str, ...]]:
    owners: dict[str, dict[int, list[str]]] = {}
    for listing in listings:
        for file in listing.files:
            owners.setdefault(file.path, {}).setdefault(file.crc, []).append(listing.project)
    return {
        path: tuple(sorted(project for group in by_content.values() for project in group))
        for path, by_content in sorted(owners.items())
        if len(by_content) > 1
    }
