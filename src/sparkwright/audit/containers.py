"""Find the device code in whatever a path names: an object, a cubin, a library, a wheel, a package folder."""

import contextlib
import mmap
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sparkwright.audit import elf
from sparkwright.errors import InputUnreadableError
from sparkwright.files import explain_write_errors

_FAT_BINARY_MAGIC: Final = (0xBA55ED50).to_bytes(4, "little")
_FAT_BINARY_HEADER: Final = struct.Struct("<IHHQ")
_ZIP_MAGIC: Final = b"PK"

# As cuobjdump does: the relocatable device code of a linked file is not what runs.
_FAT_BINARY_SECTIONS: Final = (".nv_fatbin", "__nv_relfatbin")


@dataclass(frozen=True, kw_only=True)
class RawContainer:
    """One file and the pieces of device code in it: each a fat binary (one translation unit) or a cubin."""

    path: str
    pieces: tuple[memoryview, ...]
    offsets: tuple[int, ...]
    """Where in the file each piece begins."""


@contextlib.contextmanager
def open_containers(path: Path, *, only: Sequence[str] | None = None) -> Iterator[tuple[RawContainer, ...]]:
    """The files below `path` that can hold device code, in order of name; with `only`, just these of a folder.

    Raises:
        InputUnreadableError: `path` is missing, truncated, of no known kind, or an empty folder.
    """
    with contextlib.ExitStack() as stack:
        try:
            if only is not None:
                files = {name: path / name for name in only}
            elif path.is_dir():
                files = _folder(path)
            elif _starts_with(path, _ZIP_MAGIC):
                files = _wheel(
                    path, Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sparkwright-audit-")))
                )
            else:
                files = {path.name: path}
            containers = tuple(_container(name, file) for name, file in sorted(files.items()))
        except OSError as error:
            raise InputUnreadableError(
                f"{path} cannot be read: {error.strerror or error}",
                remedy="name an object, cubin, shared library, wheel or installed package folder",
            ) from error
        yield containers


def _folder(folder: Path) -> dict[str, Path]:
    files = [file for file in folder.rglob("*") if file.is_file() and not file.is_symlink()]
    if not files:
        raise InputUnreadableError(f"{folder} is an empty folder", remedy="name the folder of an installed package")
    return {file.relative_to(folder).as_posix(): file for file in files if _holds_code(file)}


def _wheel(wheel: Path, scratch: Path) -> dict[str, Path]:
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [member for member in archive.infolist() if not member.is_dir() and _is_code(archive, member)]
            with explain_write_errors(scratch):
                return {member.filename: Path(archive.extract(member, scratch)) for member in members}
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise InputUnreadableError(
            f"{wheel} is not a complete wheel: {error}",
            cause="the download or copy was interrupted",
            remedy="fetch it again",
        ) from error


def _is_code(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bool:
    with archive.open(member) as stream:
        return stream.read(4) in (elf.MAGIC, _FAT_BINARY_MAGIC)


def _holds_code(file: Path) -> bool:
    return _starts_with(file, elf.MAGIC) or _starts_with(file, _FAT_BINARY_MAGIC)


def _starts_with(file: Path, magic: bytes) -> bool:
    with file.open("rb") as stream:
        return stream.read(len(magic)) == magic


def _container(name: str, file: Path) -> RawContainer:
    if not _holds_code(file):
        raise InputUnreadableError(
            f"{file} holds no machine code",
            cause="it is empty, a text file, or of a kind the audit does not know",
            remedy="name an object, cubin, shared library, wheel or installed package folder",
        )
    with file.open("rb") as stream:
        data = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
    if bytes(data[:4]) == _FAT_BINARY_MAGIC:
        return _cut(data, name, 0, len(data))
    found = {section.name: section for section in elf.sections(data, name)}
    if elf.is_cubin(data):
        return RawContainer(path=name, pieces=(data,), offsets=(0,))
    for wanted in _FAT_BINARY_SECTIONS:
        if wanted in found:
            section = found[wanted]
            return _cut(data, name, section.offset, section.size)
    return RawContainer(path=name, pieces=(), offsets=())


def _cut(data: memoryview, name: str, offset: int, size: int) -> RawContainer:
    run = data[offset : offset + size]
    places = tuple(_fat_binaries(run, name))
    return RawContainer(
        path=name,
        pieces=tuple(run[place] for place in places),
        offsets=tuple(offset + place.start for place in places),
    )


def _fat_binaries(data: memoryview, name: str) -> Iterator[slice]:
    """Where in a run of fat binaries, zero bytes between them, its members lie: one for each translation unit."""
    at = 0
    while at < len(data):
        if data[at] == 0:
            at += 1
            continue
        if bytes(data[at : at + 4]) != _FAT_BINARY_MAGIC or at + _FAT_BINARY_HEADER.size > len(data):
            raise InputUnreadableError(f"{name}: what lies at byte {at} of its device code is not a fat binary")
        _, _, header_size, size = _FAT_BINARY_HEADER.unpack_from(data, at)
        end = at + header_size + size
        if end > len(data):
            raise InputUnreadableError(
                f"{name} is cut off: a fat binary ends at byte {end} of {len(data)}",
                cause="the copy, download or compilation that made it was interrupted",
                remedy="make it again",
            )
        yield slice(at, end)
        at = end
