"""Read a hash-locked requirement file: which releases it installs on a target."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from packaging.markers import Marker
from packaging.utils import NormalizedName, canonicalize_name

from sparkwright.errors import ConfigurationError, InputUnreadableError
from sparkwright.image.target import Target

_ENTRY: Final = re.compile(r"^(?P<project>[A-Za-z0-9._-]+)==(?P<version>[^\s;]+)(?:\s*;\s*(?P<marker>.+?))?\s*$")
_HASH: Final = re.compile(r"--hash=sha256:([0-9a-f]{64})")


@dataclass(frozen=True, kw_only=True)
class Locked:
    """One release, with the hash of each of its files."""

    project: NormalizedName
    version: str
    sha256: frozenset[str]


def read_lock(path: Path, target: Target) -> tuple[Locked, ...]:
    """The releases that a lock file installs on `target`, in order of name.

    Raises:
        InputUnreadableError: there is no such file.
        ConfigurationError: a line of it is not as `sparkwright pins lock` writes it.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InputUnreadableError(f"{path} is missing", remedy="run `sparkwright pins lock`") from error
    return tuple(entry for entry, marker in _entries(path.name, text) if marker is None or _holds(marker, target))


def _holds(marker: Marker, target: Target) -> bool:
    return marker.evaluate({str(name): value for name, value in target.markers.items()})


def _entries(name: str, text: str) -> Iterator[tuple[Locked, Marker | None]]:
    for block in re.split(r"\n(?=[^\s#])", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)):
        if not block.strip():
            continue
        first = block.splitlines()[0].removesuffix("\\")
        entry, hashes = _ENTRY.match(first), frozenset(_HASH.findall(block))
        if entry is None or not hashes:
            raise ConfigurationError(
                f"{name} holds {first.strip()!r}, which is not a release with its hashes",
                remedy="run `sparkwright pins lock`",
            )
        marker = entry["marker"]
        project = canonicalize_name(entry["project"])
        yield (
            Locked(project=project, version=entry["version"], sha256=hashes),
            Marker(marker) if marker else None,
        )
