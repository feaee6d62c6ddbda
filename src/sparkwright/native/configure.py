"""Configure vLLM with its own CMake, for exactly the targets that pins/ names and without touching the network."""

import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sparkwright.errors import BuildFailedError, CommandFailedError, UsageError
from sparkwright.files import sha256_bytes, write_atomic, write_json
from sparkwright.native import measure
from sparkwright.native.environment import BuildEnvironment
from sparkwright.native.layout import Layout
from sparkwright.paths import CHECKOUT, cache
from sparkwright.pins import Line
from sparkwright.run import run

BUILD_TYPE: Final = "Release"
FLAGS: Final = "-O2 -DNDEBUG"
"""Upstream's optimisation without its -g: debug information is four fifths of a library and binds the entries of the
compiler cache to one folder. CMake's own flags for Release have -O3, which takes GCC minutes for Marlin's host code."""
STRIP: Final = "--strip-all"
"""For the linker: the symbols that no program needs hold names of nvcc's temporary files, which differ each time."""
_READ_BY_CMAKE: Final = (
    "CUDA_HOME",
    "CUDAHOSTCXX",
    "CXX",
    "FETCHCONTENT_BASE_DIR",
    "TORCH_CUDA_ARCH_LIST",
    "VLLM_CUTLASS_SRC_DIR",
)
_FLAG_VARIABLES: Final = ("CMAKE_CXX_FLAGS_RELEASE", "CMAKE_CUDA_FLAGS_RELEASE")
RECORD: Final = "sparkwright-configured.json"
"""In the build folder: how it was configured. Whoever configures it in another way removes this."""


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """How CMake is called: the arguments that also setup.py takes on, and the environment of CMake and ninja."""

    source: Path
    build: Path
    initial_cache: Path
    """CMake's file of initial values; `configure` writes it."""
    arguments: tuple[str, ...]
    variables: dict[str, str]

    def digest(self) -> str:
        """Changes when CMake has to be called again; edits of CMake files are noticed by ninja itself."""
        relevant = {name: self.variables.get(name) for name in _READ_BY_CMAKE}
        return sha256_bytes(json.dumps([str(self.source), self.arguments, FLAGS, relevant], sort_keys=True).encode())


def find_ccache() -> Path | None:
    """The compiler cache, when it is installed."""
    found = shutil.which("ccache")
    return Path(found) if found else None


def compiler_cache() -> dict[str, str]:
    """The variables by which ccache finds what another checkout, or the same toolkit installed again, has compiled."""
    return {
        "CCACHE_DIR": os.environ.get("CCACHE_DIR") or str(cache() / "ccache"),
        "CCACHE_BASEDIR": str(CHECKOUT),
        "CCACHE_COMPILERCHECK": "content",
        # Without it ccache 4.7.5 binds what nvcc makes to the working directory, which only debug information needs.
        "CCACHE_NOHASHDIR": "1",
    }


def configuration(
    *, line: Line, source: Path, cutlass: Path, environment: BuildEnvironment, folders: Layout, ccache: Path | None
) -> Configuration:
    """Put together how a line is configured.

    Raises:
        UsageError: a path holds white space, which CMake's and vLLM's own scripts split.
    """
    for path in (source, folders.root, environment.prefix, cutlass):
        if any(character.isspace() or character == ";" for character in str(path)):
            raise UsageError(
                f"the build cannot work in {path}",
                cause="vLLM's build splits paths at white space and semicolons",
                remedy="move the checkout, or set SPARKWRIGHT_CACHE to a folder without them",
            )
    launcher = [sys.executable, "-I", "-S", measure.__file__, str(folders.measurements)]
    launcher += [str(ccache)] if ccache else []
    launch = ";".join(launcher)
    return Configuration(
        source=source,
        build=folders.native,
        initial_cache=folders.initial_cache,
        arguments=(
            *("-C", str(folders.initial_cache)),
            f"-DCUTLASS_INCLUDE_DIR={cutlass / 'include'}",
            f"-DCUTLASS_TOOLS_UTIL_INCLUDE_DIR={cutlass / 'tools' / 'util' / 'include'}",
            f"-DCMAKE_CUDA_COMPILER_LAUNCHER={launch}",
            f"-DCMAKE_CXX_COMPILER_LAUNCHER={launch}",
            f"-DCMAKE_MODULE_LINKER_FLAGS_RELEASE=-Wl,{STRIP}",
            "-DCMAKE_SUPPRESS_DEVELOPER_WARNINGS=ON",
        ),
        variables=environment.variables(
            {
                "TORCH_CUDA_ARCH_LIST": ";".join(line.arch_list),
                "VLLM_CUTLASS_SRC_DIR": str(cutlass),
                "FETCHCONTENT_BASE_DIR": str(folders.fetched),
            }
            | compiler_cache()
        ),
    )


def configure(how: Configuration, environment: BuildEnvironment, log: Path) -> bool:
    """Call CMake, unless it was called the same way before. Returns whether it was called.

    Raises:
        BuildFailedError: CMake refuses.
    """
    record = how.build / RECORD
    wanted = {"digest": how.digest()}
    if (how.build / "build.ninja").is_file() and record.is_file() and json.loads(record.read_text()) == wanted:
        return False
    # A file, because setup.py splits the arguments it is given at white space.
    write_atomic(how.initial_cache, "".join(f'set({name} "{FLAGS}" CACHE STRING "")\n' for name in _FLAG_VARIABLES))
    record.unlink(missing_ok=True)
    nvcc = environment.cuda_home / "bin" / "nvcc"
    _forget_other_compiler(how.build, nvcc)
    log.unlink(missing_ok=True)
    command: list[str | Path] = [
        environment.tool("cmake"),
        *("-S", str(how.source), "-B", str(how.build), "-G", "Ninja"),
        f"-DCMAKE_MAKE_PROGRAM={environment.tool('ninja')}",
        f"-DCMAKE_BUILD_TYPE={BUILD_TYPE}",
        "-DVLLM_TARGET_DEVICE=cuda",
        "-DVLLM_LEAN=ON",
        f"-DVLLM_PYTHON_EXECUTABLE={environment.python}",
        f"-DCMAKE_CUDA_COMPILER={nvcc}",
        "-UCMAKE_JOB_POOL*",  # setup.py leaves some, and they would win over --jobs
        f"-DFETCHCONTENT_BASE_DIR={how.variables['FETCHCONTENT_BASE_DIR']}",
        "-DNVCC_THREADS=1",
        *how.arguments,
    ]
    try:
        run(command, env=how.variables, log=log)
    except CommandFailedError as error:
        raise BuildFailedError(
            f"CMake could not configure vLLM:\n{error.what}", remedy=f"the whole output is in {log}"
        ) from error
    write_json(record, wanted)
    return True


def _forget_other_compiler(build: Path, nvcc: Path) -> None:
    """Remove what CMake remembers of another build environment: it would win over the arguments. Objects stay."""
    cached = build / "CMakeCache.txt"
    if cached.is_file() and f"={nvcc}\n" not in cached.read_text(encoding="utf-8"):
        cached.unlink()
        for remembered in build.glob("CMakeFiles/[0-9]*"):
            shutil.rmtree(remembered)
