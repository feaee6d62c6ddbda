"""What a host build needs of the machine, asked before anything is fetched or compiled."""

import os
import shutil
import sysconfig
from pathlib import Path
from typing import Final

from sparkwright.errors import OutputError, UnavailableError
from sparkwright.files import explain_write_errors
from sparkwright.native.compiler import HostCompiler, host_compiler
from sparkwright.native.environment import COMPILER_OPTIONS
from sparkwright.report import note

ENVIRONMENT_BYTES: Final = 10_000_000_000
"""What making the build environment takes at its peak: 6 GB installed, and what pip unpacks and keeps on the way."""
BUILD_BYTES: Final = 2_000_000_000
"""What the sources and objects of one line take."""


def check_compiler() -> HostCompiler:
    """The host compiler, with the headers of the Python that runs this.

    Raises:
        UnavailableError: the compiler or the headers are missing, or the compiler does not suit.
    """
    compiler = host_compiler()
    headers = Path(sysconfig.get_path("include"), "Python.h")
    if not headers.is_file():
        raise UnavailableError(
            f"{headers} is missing",
            cause="the headers of this Python are not installed",
            remedy="install them (Debian, Ubuntu: apt install python3-dev), or use another Python",
        )
    return compiler


def check_space(folder: Path, needed: int) -> None:
    """Make sure that a folder can be made and that its disk has room.

    Raises:
        OutputError: it has not, or the folder cannot be written.
    """
    with explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    if not os.access(folder, os.W_OK):
        raise OutputError(f"{folder} cannot be written", remedy="change its owner, or choose another folder")
    if free < needed:
        raise OutputError(
            f"the disk of {folder} has {free / 1e9:.1f} GB free; the build needs {needed / 1e9:.0f} GB there",
            remedy="free some space; SPARKWRIGHT_CACHE moves the cache to another disk",
        )


def report_ignored_options() -> None:
    """Tell which compiler options of the caller's environment are left out of the build."""
    for name in COMPILER_OPTIONS:
        if os.environ.get(name):
            note(f"{name} is set in your environment and left out: an architecture given there breaks GB10 code")
