"""Read the files of pins/ and refuse what does not follow the models."""

import platform
import tomllib
from pathlib import Path
from typing import TypeVar

from packaging.version import InvalidVersion, Version
from pydantic import ValidationError

from sparkwright import paths
from sparkwright.errors import ConfigurationError
from sparkwright.pins.model import FileKind, Line, Releases, Strict, Toolchain

_Model = TypeVar("_Model", bound=Strict)


def lines() -> tuple[str, ...]:
    """The release lines, newest first: one file of pins/ each, called as the vLLM release."""
    found = [path.stem for path in paths.PINS.glob("*.toml") if _is_version(path.stem)]
    return tuple(sorted(found, key=Version, reverse=True))


def default_line() -> str:
    """The line that is meant when none is named: the newest."""
    known = lines()
    if not known:
        raise ConfigurationError(f"{paths.PINS} holds no release line", remedy="set SPARKWRIGHT_ROOT to a checkout")
    return known[0]


def load_line(name: str) -> Line:
    """The pins of one release line.

    Raises:
        ConfigurationError: there is no such line, or its file is wrong.
    """
    if name not in lines():
        raise ConfigurationError(
            f"there is no release line {name}",
            cause=f"the lines are: {', '.join(lines()) or 'none'}",
            remedy="name one of them, or add pins/<line>.toml",
        )
    line = read(paths.PINS / f"{name}.toml", Line)
    if line.name != name:
        raise ConfigurationError(f"pins/{name}.toml calls itself {line.name}", remedy="make the two names equal")
    return line


def load_toolchain() -> Toolchain:
    """The pins of the CUDA toolchain."""
    return read(paths.PINS / "toolchain.toml", Toolchain)


def load_releases() -> Releases:
    """The upstream releases of the patch matrix: those of the lines, and those pinned for the matrix alone."""
    others = read(paths.PINS / "releases.toml", Releases)
    examined = {component.name for component in others.components}
    ours = [component for name in lines() for component in load_line(name).components if component.name in examined]
    try:
        return Releases(component=(*others.components, *ours))
    except ValidationError as error:
        raise ConfigurationError(
            "pins/releases.toml repeats a release of a line",
            remedy="remove it there: the matrix takes it from the line's own file",
        ) from error


def host_wheel_kind() -> FileKind:
    """Which wheels run on this machine.

    Raises:
        ConfigurationError: vLLM and CUDA have none for it.
    """
    machine = platform.machine()
    kinds: dict[str, FileKind] = {"x86_64": "wheel-x86_64", "aarch64": "wheel-aarch64"}
    if platform.system() != "Linux" or machine not in kinds:
        raise ConfigurationError(
            f"{platform.system()} on {machine} is not supported",
            cause="CUDA's compiler is pinned for Linux on x86_64 and aarch64 only",
            remedy="work on such a machine",
        )
    return kinds[machine]


def read(path: Path, model: type[_Model]) -> _Model:
    """Read one pins file as `model`.

    Raises:
        ConfigurationError: it is missing, is not TOML, or breaks a rule of the model.
    """
    try:
        return model.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise ConfigurationError(f"{path} is missing", remedy="set SPARKWRIGHT_ROOT to a checkout") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not TOML: {error}") from error
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error.what}", cause=error.cause, remedy=error.remedy) from error
    except ValidationError as error:
        places = [fault["loc"] for fault in error.errors()]
        faults = [
            f"{_place(fault['loc'])}: {fault['msg']}"
            for fault in error.errors()
            # A list of which an item was refused is also reported as too short; only the item is the fault.
            if not any(place != fault["loc"] == place[: len(fault["loc"])] for place in places)
        ]
        raise ConfigurationError(
            f"{path} is refused: " + "; ".join(faults),
            cause="a key is missing, misspelt or unknown, or a hash or commit is not given in full",
            remedy="correct the places named; src/sparkwright/pins/model.py says what each key means",
        ) from error


def _place(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location) or "the file"


def _is_version(text: str) -> bool:
    try:
        Version(text)
    except InvalidVersion:
        return False
    return True
