"""The Python environment that compiles a line: torch, CMake, ninja and CUDA's compiler at locked versions."""

import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sparkwright.errors import CommandFailedError, ConfigurationError, UnavailableError
from sparkwright.files import exclusive_lock, explain_write_errors, sha256_file, write_json
from sparkwright.native.compiler import HostCompiler
from sparkwright.native.cuda_home import add_driver_stub, compose
from sparkwright.native.toolchain import WHEEL_PREFIX
from sparkwright.paths import REQUIREMENTS, cache
from sparkwright.pins import Line
from sparkwright.report import note
from sparkwright.run import run

COMPILER_OPTIONS: Final = ("NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS")
"""Variables through which flags reach nvcc behind the build's back; an -arch there breaks GB10 code."""
_KEPT: Final = ("HOME", "TMPDIR", "LANG", "LC_ALL", "USER", "CXX", "SOURCE_DATE_EPOCH")
_COMPLETE: Final = "sparkwright.json"


@dataclass(frozen=True, kw_only=True)
class BuildEnvironment:
    """A finished environment."""

    prefix: Path
    lock: str
    """sha256 of the requirements it was made from."""

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.prefix / "bin" / "python"

    @property
    def cuda_home(self) -> Path:
        """The composed CUDA toolkit in it."""
        return site_packages(self.prefix) / WHEEL_PREFIX

    @property
    def pip_wheel(self) -> list[str | Path]:
        """`pip wheel`, for a project that needs nothing but what is installed here."""
        return [self.python, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--no-index"]

    def tool(self, name: str) -> Path:
        """A program of this environment."""
        return self.prefix / "bin" / name

    def variables(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """The whole environment of a program that builds: of the caller's variables only those that do no harm."""
        kept = {name: value for name, value in os.environ.items() if name in _KEPT or name.startswith("CCACHE_")}
        path = [self.cuda_home / "bin", self.prefix / "bin", os.environ.get("PATH", os.defpath)]
        own = {
            "PATH": os.pathsep.join(map(str, path)),
            "CUDA_HOME": str(self.cuda_home),
            "VIRTUAL_ENV": str(self.prefix),
        }
        if chosen := os.environ.get("CXX"):
            own["CUDAHOSTCXX"] = chosen  # else nvcc would go on with the g++ of PATH
        return kept | own | dict(extra or {})


def requirements_of(line: Line, purpose: str = "build") -> Path:
    """The lock file of an environment of the line: `build` compiles it, `run` is what vLLM itself needs.

    Raises:
        ConfigurationError: the line has none, because it cannot be compiled.
    """
    name = f"{purpose}-{line.name}.txt"
    if name not in line.requirements:
        raise ConfigurationError(f"line {line.name} has no environment to {purpose}", cause=line.why)
    return REQUIREMENTS / name


def location(requirements: Path) -> Path:
    """Where the environment made from a lock file lies, whether it exists or not."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return cache() / "envs" / f"{requirements.stem}-py{python}-{sha256_file(requirements)[:16]}"


def is_complete(prefix: Path) -> bool:
    """Whether an environment was made to its end."""
    return (prefix / _COMPLETE).is_file()


def locked_environment(requirements: Path, log: Path, *, finish: Callable[[Path], None] | None = None) -> Path:
    """The environment made from a lock file; one that is missing or was left unfinished is made anew.

    `finish` adds to a new one what pip does not.

    Raises:
        UnavailableError: Python cannot make environments, or the package index cannot be reached.
        OutputError: the cache cannot be written.
    """
    prefix = location(requirements)
    with exclusive_lock(prefix.with_name(f".{prefix.name}.lock"), doing="making an environment", wait=True):
        if not is_complete(prefix):
            with explain_write_errors(prefix):
                if prefix.exists():
                    shutil.rmtree(prefix)
                _install(prefix, requirements, log)
                if finish:
                    finish(prefix)
                write_json(prefix / _COMPLETE, {"requirements": sha256_file(requirements)})
    return prefix


def build_environment(line: Line, compiler: HostCompiler, log: Path) -> BuildEnvironment:
    """The environment that compiles a line: 3 GB to fetch, 6 GB on disk. Raises as `locked_environment`."""

    def finish(prefix: Path) -> None:
        add_driver_stub(compose(site_packages(prefix) / WHEEL_PREFIX), compiler)

    requirements = requirements_of(line)
    prefix = locked_environment(requirements, log, finish=finish)
    return BuildEnvironment(prefix=prefix, lock=sha256_file(requirements))


def _install(prefix: Path, requirements: Path, log: Path) -> None:
    note(f"making the environment {prefix.name}: some GB to fetch and unpack (log: {log})")
    try:
        run([sys.executable, "-m", "venv", prefix], log=log)
    except CommandFailedError as error:
        raise UnavailableError(
            f"{sys.executable} cannot make an environment",
            cause="its modules venv and ensurepip are not installed",
            remedy="install them (Debian, Ubuntu: apt install python3-venv)",
        ) from error
    # The lock names everything, so pip has nothing to resolve; it would stumble over extras, which have no hashes.
    # Few retries: without network this must fail in seconds and not in minutes.
    pip: list[str | Path] = [
        prefix / "bin" / "python",
        "-m",
        "pip",
        "install",
        "--no-input",
        "--no-compile",
        "--retries",
        "2",
    ]
    try:
        run([*pip, "--no-deps", "--require-hashes", "--requirement", requirements], log=log)
    except CommandFailedError as error:
        raise UnavailableError(
            f"{prefix.name} could not be installed; the end of pip's output:\n{error.what}",
            cause="no network, a mirror without one of the files, or a full disk",
            remedy=f"check that pip works here, then run the same command again; the whole output is in {log}",
        ) from error


def site_packages(prefix: Path) -> Path:
    """Where the packages of an environment lie."""
    return prefix / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
