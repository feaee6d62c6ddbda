"""The header of a safetensors file: what tensors it holds and where, without reading any of them."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

BITS: Final = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E5M2FNUZ": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E8M0": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
"""Bits per element of each safetensors type."""

_KEYS: Final = (b'"dtype":', b'"shape":', b'"data_offsets":')
_LENGTH_BYTES: Final = 8
_MOST_HEADER_BYTES: Final = 100_000_000  # the safetensors library refuses longer ones
_MOST_DIMENSIONS: Final = 32


class HeaderError(Exception):
    """The file does not begin with a valid safetensors header; the message says how."""


class Tensor(NamedTuple):
    """One tensor of a shard; `offset` counts from the beginning of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    nbytes: int

    @property
    def elements(self) -> int:
        """Number of stored elements; a packed byte counts as one."""
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class Shard:
    """What a safetensors file says it holds, and how long it is against how long it should be."""

    path: Path
    tensors: tuple[Tensor, ...]
    size: int
    expected_size: int

    @property
    def cut_off(self) -> tuple[Tensor, ...]:
        """Tensors that lie beyond the end of the file, wholly or in part."""
        return tuple(tensor for tensor in self.tensors if tensor.offset + tensor.nbytes > self.size)


def read_shard(path: Path) -> Shard:
    """Read the header of a safetensors file.

    Raises:
        HeaderError: the file cannot be opened or its header is not a valid one.
    """
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(0)
            prefix = stream.read(_LENGTH_BYTES)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < _LENGTH_BYTES:
                raise HeaderError(f"the file has {size} bytes, too few for a header")
            if length > _MOST_HEADER_BYTES:
                raise HeaderError(f"the header claims {length} bytes, more than any safetensors file may have")
            if length > size - _LENGTH_BYTES:
                raise HeaderError(f"the header claims {length} bytes, the file has {size}")
            text = stream.read(length)
    except OSError as error:
        raise HeaderError(error.strerror or str(error)) from error
    start = _LENGTH_BYTES + length
    tensors = sorted(
        (_tensor(path, name, entry, start) for name, entry in _parse(text).items() if name != "__metadata__"),
        key=lambda tensor: (tensor.offset, tensor.offset + tensor.nbytes),
    )
    return Shard(path=path, tensors=tuple(tensors), size=size, expected_size=_end(tensors, start))


def _parse(text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise HeaderError("the header names a tensor twice")
        return found

    try:
        header = json.loads(text.decode("utf-8"))
        # Only where the count of keys is not that of the tensors: looking at every pair doubles the time.
        if isinstance(header, dict) and {text.count(key) for key in _KEYS} != {len(header.keys() - {"__metadata__"})}:
            header = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise HeaderError(f"the header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise HeaderError("the header is not a JSON object")
    return header


def _naturals(name: str, entry: Mapping[str, Any], key: str) -> list[int]:
    values = entry.get(key)
    if isinstance(values, list):
        for value in values:
            if type(value) is not int or value < 0:  # a bool is no number here
                break
        else:
            return values
    raise HeaderError(f"{key} of {name!r} is not a list of whole numbers")


def _tensor(path: Path, name: str, entry: object, start: int) -> Tensor:
    if not name.isprintable():
        raise HeaderError(f"the name {name!r} is not printable text")
    if not isinstance(entry, dict):
        raise HeaderError(f"the entry of {name!r} is not a JSON object")
    dtype = entry.get("dtype")
    if not isinstance(dtype, str) or dtype not in BITS:
        raise HeaderError(f"{name!r} has the unknown type {dtype!r}")
    shape = _naturals(name, entry, "shape")
    offsets = _naturals(name, entry, "data_offsets")
    if len(shape) > _MOST_DIMENSIONS or len(offsets) != 2:
        raise HeaderError(f"{name!r} has {len(shape)} dimensions and {len(offsets)} offsets")
    begin, end = offsets
    if (end - begin) * 8 != math.prod(shape) * BITS[dtype]:
        raise HeaderError(f"{name!r} takes {end - begin} bytes, which does not fit {dtype} of shape {tuple(shape)}")
    return Tensor(name, dtype, tuple(shape), path, start + begin, end - begin)


def _end(tensors: Sequence[Tensor], start: int) -> int:
    """Where the file should end; the tensors must follow one another without gap or overlap."""
    at = start
    for tensor in tensors:
        if tensor.offset != at:
            raise HeaderError(f"there is a gap or an overlap before {tensor.name!r}")
        at += tensor.nbytes
    return at
