"""Unpack sdists and wheels so that nothing lands outside the folder and nothing is left half done."""

import calendar
import gzip
import json
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Final, Literal

from sparkwright.errors import InputUnreadableError, OutputError
from sparkwright.files import exclusive_lock, explain_write_errors, sha256_file

_RECORD: Final = ".sparkwright/unpacked.json"
"""Says in an unpacked folder which archive it came from; it is written last, before the rename."""

_DAMAGED: Final = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
)
"""What the libraries raise on archives that are damaged, encrypted or packed in a way they do not know."""


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """One member of an archive, whatever the format; `modified` is in seconds since 1970."""

    path: PurePosixPath
    kind: Literal["folder", "file", "symlink", "hardlink"]
    executable: bool
    modified: float
    content: IO[bytes] | None = None
    link: str = ""


def unpack(archive: Path, into: Path, *, reuse: bool = False) -> Path:
    """Unpack a .tar.gz, .whl or .zip into the new folder `into`, and return the root of the tree.

    The root is the single top folder of a .tar.gz, and `into` itself for a wheel. `into` appears only
    when all is unpacked. With `reuse`, a folder that this archive was unpacked into before is taken as it is.

    Raises:
        InputUnreadableError: the archive is damaged, or a member would land or point outside the folder.
        OutputError: `into` exists already (and is not to be, or cannot be, reused), or cannot be written.
    """
    if not archive.is_file():
        raise InputUnreadableError(f"{archive} does not exist or is not a file")
    into = into.absolute()
    with explain_write_errors(into), exclusive_lock(into.with_name(f".{into.name}.lock"), doing="unpacking", wait=True):
        origin = {"archive": archive.name, "sha256": sha256_file(archive)}
        if into.exists():
            if reuse and _origin(into) == origin:
                return _root(into, archive)
            raise OutputError(
                f"{into} exists already" + (f" and was not made from {archive.name}" if reuse else ""),
                remedy="remove it, or choose another folder",
            )
        # A fixed name: the lock is held, so whatever lies there was left by an interrupted run.
        partial = into.with_name(f".{into.name}.unpacking")
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
        try:
            _write_entries(archive, partial)
            _root(partial, archive)
            record = partial / _RECORD
            record.parent.mkdir(exist_ok=True)
            record.write_text(json.dumps(origin) + "\n", encoding="utf-8")
            partial.rename(into)
        except BaseException:
            shutil.rmtree(partial)
            raise
        return _root(into, archive)


def _origin(into: Path) -> object:
    try:
        return json.loads((into / _RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _root(into: Path, archive: Path) -> Path:
    if _is_zip(archive):
        return into
    tops = [path for path in into.iterdir() if path.name != PurePosixPath(_RECORD).parts[0]]
    if len(tops) != 1 or not tops[0].is_dir() or tops[0].is_symlink():
        raise InputUnreadableError(f"{archive} is not an sdist: it does not hold exactly one top folder")
    return tops[0]


def _is_zip(archive: Path) -> bool:
    return archive.suffix in {".whl", ".zip"}


def _write_entries(archive: Path, folder: Path) -> None:
    entries = _zip_entries(archive) if _is_zip(archive) else _tar_entries(archive)
    links: set[PurePosixPath] = set()
    try:
        for entry in entries:
            _check(entry, links, archive)
            _write(entry, folder)
            if entry.kind == "symlink":
                links.add(entry.path)
    except _DAMAGED as error:
        raise InputUnreadableError(
            f"{archive} cannot be unpacked: {error}", cause="the file is damaged or not an archive of its kind"
        ) from error
    except (FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise InputUnreadableError(
            f"{archive} cannot be unpacked: {error}", cause="its members contradict each other"
        ) from error


def _tar_entries(archive: Path) -> Iterator[_Entry]:
    with gzip.open(archive) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
        for member in tar:
            kind: Literal["folder", "file", "symlink", "hardlink"]
            if member.isdir():
                kind = "folder"
            elif member.isreg():
                kind = "file"
            elif member.issym():
                kind = "symlink"
            elif member.islnk():
                kind = "hardlink"
            else:
                raise _refusal(archive, member.name, "is a device or pipe")
            yield _Entry(
                path=_plain(member.name, archive),
                kind=kind,
                executable=bool(member.mode & stat.S_IXUSR),
                modified=member.mtime,
                content=tar.extractfile(member) if kind == "file" else None,
                link=member.linkname,
            )
        # tarfile stops at the end mark; only the last bytes tell whether gzip's checksum holds.
        while stream.read(1 << 20):
            pass


def _zip_entries(archive: Path) -> Iterator[_Entry]:
    with zipfile.ZipFile(archive) as package:
        for member in package.infolist():
            mode = member.external_attr >> 16
            if stat.S_IFMT(mode) not in {0, stat.S_IFREG, stat.S_IFDIR}:
                raise _refusal(archive, member.filename, "is neither a file nor a folder")
            path = _plain(member.filename, archive)
            if member.is_dir():
                yield _Entry(path=path, kind="folder", executable=True, modified=0)
                continue
            with package.open(member) as content:
                yield _Entry(
                    path=path,
                    kind="file",
                    executable=bool(mode & stat.S_IXUSR),
                    modified=calendar.timegm(member.date_time),
                    content=content,
                )


def _plain(name: str, archive: Path) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or not path.parts:
        raise _refusal(archive, name, "would land outside the folder")
    return path


def _check(entry: _Entry, links: set[PurePosixPath], archive: Path) -> None:
    if not links.isdisjoint(entry.path.parents):
        raise _refusal(archive, str(entry.path), "would be written through a link")
    if entry.kind == "hardlink":
        _plain(entry.link, archive)
        if not links.isdisjoint((PurePosixPath(entry.link), *PurePosixPath(entry.link).parents)):
            raise _refusal(archive, str(entry.path), "is a hard link through a link")
    if entry.kind == "symlink":
        # With ".." in front only, the target can be judged by its text alone, whatever other links it passes.
        parts = PurePosixPath(entry.link).parts
        ascent = next((place for place, part in enumerate(parts) if part != ".."), len(parts))
        depth = len(entry.path.parts) - 1
        if PurePosixPath(entry.link).is_absolute() or not entry.link or ".." in parts[ascent:] or ascent > depth:
            raise _refusal(archive, str(entry.path), f"is a link to {entry.link!r}, which may lead out of the folder")


def _write(entry: _Entry, folder: Path) -> None:
    target = folder / entry.path
    if entry.kind == "folder":
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if entry.kind == "symlink":
        target.symlink_to(entry.link)
    elif entry.kind == "hardlink":
        target.hardlink_to(folder / entry.link)
    elif entry.content is not None:
        # "x": a second member of the same name is refused instead of replacing or following the first.
        with target.open("xb") as stream:
            shutil.copyfileobj(entry.content, stream, 1 << 20)
        target.chmod(0o755 if entry.executable else 0o644)
        # Own times, not the time of unpacking: a tree unpacked again must not look changed to a build.
        os.utime(target, (entry.modified, entry.modified))


def _refusal(archive: Path, name: str, reason: str) -> InputUnreadableError:
    return InputUnreadableError(
        f"{archive} is refused: its member {name!r} {reason}",
        cause="the archive was made to attack the machine that unpacks it, or it is not a source archive",
        remedy="do not use it",
    )
