"""What the locked wheels of the image hold, read from the package index without fetching them whole.

A wheel is a zip file: its table of contents and its metadata are a few ranges of bytes at known places.
"""

import email.parser
import io
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from packaging.utils import canonicalize_name, parse_wheel_filename

from sparkwright import report
from sparkwright.errors import UnavailableError
from sparkwright.image.locked import Locked
from sparkwright.image.target import Target
from sparkwright.sources.index import Index

_TAIL: Final = 1 << 17  # holds the whole table of contents of most wheels
_AT_ONCE: Final = 8
_PIECE: Final = 1 << 24  # of a large file in a wheel, in one request


@dataclass(frozen=True, kw_only=True)
class WheelFile:
    """One file in a wheel."""

    path: str
    size: int
    packed: int
    crc: int


@dataclass(frozen=True, kw_only=True)
class WheelListing:
    """A wheel and all that is in it."""

    project: str
    version: str
    name: str
    sha256: str
    size: int
    licence: str
    files: tuple[WheelFile, ...]


@dataclass(frozen=True, kw_only=True)
class Found:
    """The wheel of a release that suits a target, in the package index."""

    release: Locked
    name: str
    address: str
    sha256: str


def find_wheels(locked: tuple[Locked, ...], target: Target) -> tuple[Found, ...]:
    """The wheel that each release installs on `target`: one with a locked hash, and the best tag of these.

    Raises:
        UnavailableError: the index cannot be reached, or a release has no such wheel.
    """
    ranks = _ranks(target)
    with Index() as index, ThreadPoolExecutor(_AT_ONCE) as pool:
        return tuple(pool.map(lambda release: _found(index, release, ranks), locked))


def list_wheels(locked: tuple[Locked, ...], target: Target) -> tuple[WheelListing, ...]:
    """The wheel that each release installs on `target`, with its contents.

    Raises:
        UnavailableError: as `find_wheels`, or the index gives no parts of files.
    """
    ranks = _ranks(target)
    with Index() as index, ThreadPoolExecutor(_AT_ONCE) as pool, report.progress(unit="wheels") as progress:
        task = progress.add_task(f"reading {len(locked)} wheels", total=len(locked))

        def one(release: Locked) -> WheelListing:
            listing = _listing(index, _found(index, release, ranks))
            progress.advance(task)
            return listing

        return tuple(pool.map(one, locked))


def _ranks(target: Target) -> dict[str, int]:
    return {str(tag): rank for rank, tag in reversed(list(enumerate(target.tags())))}


def read_member(listing: WheelListing, path: str) -> bytes:
    """One file of a wheel, without the rest of it.

    Raises:
        UnavailableError: the index cannot be reached, or no longer has the wheel.
    """
    with Index() as index:
        for package in index.packages(listing.project):
            if package.filename == listing.name:
                remote = io.BufferedReader(_RemoteFile(index, package.url), _PIECE)
                with zipfile.ZipFile(remote) as archive:
                    return archive.read(path)
    raise UnavailableError(f"the package index no longer has {listing.name}")


def _found(index: Index, release: Locked, ranks: dict[str, int]) -> Found:
    candidates: list[tuple[int, str, str, str]] = []
    for package in index.packages(release.project):
        digest = package.digests.get("sha256", "")
        if digest in release.sha256 and package.filename.endswith(".whl"):
            tags = {str(tag) for tag in parse_wheel_filename(package.filename)[3]}
            if fitting := [ranks[tag] for tag in tags if tag in ranks]:
                candidates.append((min(fitting), package.filename, package.url, digest))
    if not candidates:
        raise UnavailableError(
            f"the package index has no wheel of {release.project} {release.version} for the image",
            cause="the release was withdrawn, or never had a wheel for this machine and Python",
            remedy="run `sparkwright pins lock`, and leave the project out if it must be compiled",
        )
    _, name, address, digest = min(candidates)
    return Found(release=release, name=name, address=address, sha256=digest)


def _listing(index: Index, found: Found) -> WheelListing:
    release = found.release
    remote = _RemoteFile(index, found.address)
    with zipfile.ZipFile(remote) as archive:
        files = tuple(
            WheelFile(path=entry.filename, size=entry.file_size, packed=entry.compress_size, crc=entry.CRC)
            for entry in archive.infolist()
            if not entry.is_dir()
        )
        metadata = archive.read(next(_metadata_of(release.project, files)).path).decode("utf-8", "replace")
    return WheelListing(
        project=release.project,
        version=release.version,
        name=found.name,
        sha256=found.sha256,
        size=remote.size,
        licence=licence_of(metadata),
        files=files,
    )


def _metadata_of(project: str, files: tuple[WheelFile, ...]) -> Iterator[WheelFile]:
    for file in files:
        folder, _, name = file.path.partition("/")
        owner = folder.removesuffix(".dist-info").rpartition("-")[0]
        if name == "METADATA" and folder.endswith(".dist-info") and canonicalize_name(owner) == project:
            yield file


def licence_of(metadata: str) -> str:
    """The licence that a distribution's METADATA states: an SPDX expression if it has one, else its own words."""
    fields = email.parser.HeaderParser().parsestr(metadata)
    if expression := fields.get("License-Expression"):
        return " ".join(expression.split())
    stated = (fields.get("License") or "").strip()
    if stated and "\n" not in stated and len(stated) <= 60:
        return stated
    classifiers = [
        value.rpartition(" :: ")[2] for value in fields.get_all("Classifier", []) if value.startswith("License ::")
    ]
    return " AND ".join(classifiers) or (" ".join(stated.split())[:60] if stated else "not stated")


class _RemoteFile(io.RawIOBase):
    """A file of the index as a seekable stream; the end is read once, everything else on demand."""

    def __init__(self, index: Index, address: str) -> None:
        super().__init__()
        self._index = index
        self._address = address
        self._position = 0
        self._tail, self.size = index.part(address, f"-{_TAIL}")

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401  any writable buffer, says io
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def read(self, size: int = -1) -> bytes:
        end = self.size if size < 0 else min(self.size, self._position + size)
        start, self._position = self._position, end
        if start >= end:
            return b""
        tail_at = self.size - len(self._tail)
        if start >= tail_at:
            return self._tail[start - tail_at : end - tail_at]
        return self._index.part(self._address, f"{start}-{end - 1}")[0]
