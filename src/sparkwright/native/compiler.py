"""The machine's own C++ compiler, which nvcc drives for host code."""

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sparkwright.errors import UnavailableError
from sparkwright.run import run

_GCC_AT_LEAST: Final = (11, 3)  # vLLM's CMakeLists.txt: torch's headers are C++20
_GCC_AT_MOST: Final = 15  # nvcc 13.0, include/crt/host_config.h
_INSTALL: Final = "install one, for instance `apt install g++` or `dnf install gcc-c++`, or name it in CXX"


@dataclass(frozen=True, kw_only=True)
class HostCompiler:
    """A C++ compiler that nvcc and vLLM accept."""

    path: Path
    version: str
    """As it names itself, for instance `12.2.0`."""


def host_compiler() -> HostCompiler:
    """Find the compiler (CXX, else g++ or c++ on PATH) and check its version.

    Raises:
        UnavailableError: there is none, or it is too old or too new.
    """
    wanted = os.environ.get("CXX")
    found = next((path for path in map(shutil.which, [wanted] if wanted else ["g++", "c++"]) if path), None)
    if found is None:
        raise UnavailableError(f"there is no C++ compiler{f' called {wanted}' if wanted else ''}", remedy=_INSTALL)
    macros = run([found, "-dM", "-E", "-x", "c++", os.devnull])
    if "__clang__" in macros:
        raise UnavailableError(f"{found} is clang", cause="this build is proven with GCC only", remedy=_INSTALL)
    version = tuple(_macro(macros, name) for name in ("__GNUC__", "__GNUC_MINOR__", "__GNUC_PATCHLEVEL__"))
    shown = ".".join(map(str, version))
    if version[:2] < _GCC_AT_LEAST or version[0] > _GCC_AT_MOST:
        low = ".".join(map(str, _GCC_AT_LEAST))
        raise UnavailableError(
            f"{found} is GCC {shown}; vLLM and nvcc accept {low} to {_GCC_AT_MOST}",
            remedy="install such a one and name it in CXX",
        )
    return HostCompiler(path=Path(found), version=shown)


def _macro(macros: str, name: str) -> int:
    match = re.search(rf"^#define {name} (\d+)$", macros, re.MULTILINE)
    return int(match.group(1)) if match else 0
