"""The few facts of the ELF format that the audit needs: sections, and whether the file is complete."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from sparkwright.errors import InputUnreadableError

MAGIC: Final = b"\x7fELF"
_HEADER: Final = struct.Struct("<16xHHIQQQIHHHHHH")
_SECTION: Final = struct.Struct("<IIQQQQIIQQ")
_PROGRAM_HEADER_SIZE: Final = 56
_CLASS_64_LITTLE_ENDIAN: Final = b"\x02\x01"
_MACHINE_CUDA: Final = 190
_TYPE_NOBITS: Final = 8


@dataclass(frozen=True, kw_only=True)
class Section:
    """One section and where its content lies in the file."""

    name: str
    offset: int
    size: int


def is_cubin(data: memoryview) -> bool:
    """Whether an ELF file is NVIDIA machine code rather than code of the host."""
    return int.from_bytes(data[18:20], "little") == _MACHINE_CUDA


def sections(data: memoryview, name: str) -> tuple[Section, ...]:
    """The sections of an ELF file; `name` is what messages call it.

    Raises:
        InputUnreadableError: it is cut off, or is not the 64-bit little-endian kind that CUDA uses.
    """
    if bytes(data[4:6]) != _CLASS_64_LITTLE_ENDIAN:
        raise InputUnreadableError(
            f"{name} is not a 64-bit little-endian ELF file", cause="it was built for a machine that CUDA does not know"
        )
    try:
        return tuple(_read(data))
    except (struct.error, IndexError) as error:
        raise InputUnreadableError(
            f"{name} is cut off: its ELF tables point beyond its end at {len(data)} bytes",
            cause="the copy, download or compilation that made it was interrupted",
            remedy="make it again",
        ) from error


def _read(data: memoryview) -> Iterator[Section]:
    (*_, program_offset, table, _, _, _, programs, entry_size, count, names_index) = _HEADER.unpack_from(data)
    _require(data, program_offset + programs * _PROGRAM_HEADER_SIZE)
    if table == 0:
        return
    if count == 0:  # too many for the header's 16 bits: the first section tells
        count, names_index = _SECTION.unpack_from(data, table)[5:7]
    headers = [_SECTION.unpack_from(data, table + entry_size * index) for index in range(count)]
    names_at = headers[names_index][4]
    for name_at, kind, _, _, offset, size, *_ in headers:
        if kind != _TYPE_NOBITS:
            _require(data, offset + size)
        start = names_at + name_at
        end = start
        while data[end]:
            end += 1
        yield Section(name=bytes(data[start:end]).decode("utf-8", errors="replace"), offset=offset, size=size)


def _require(data: memoryview, end: int) -> None:
    if end > len(data):
        raise IndexError(end)
