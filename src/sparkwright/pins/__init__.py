"""The pins: which release of what is built here, down to the hash of each file."""

from sparkwright.pins.load import default_line, host_wheel_kind, lines, load_line, load_releases, load_toolchain
from sparkwright.pins.model import (
    Component,
    Cutlass,
    Expectation,
    FetchContent,
    FileKind,
    Line,
    PinnedFile,
    Releases,
    Toolchain,
)

__all__ = [
    "Component",
    "Cutlass",
    "Expectation",
    "FetchContent",
    "FileKind",
    "Line",
    "PinnedFile",
    "Releases",
    "Toolchain",
    "default_line",
    "host_wheel_kind",
    "lines",
    "load_line",
    "load_releases",
    "load_toolchain",
]
