"""Make the hash-locked requirement files: ranges are written in requirements/*.in, exact releases in pins/."""

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Final

from sparkwright import paths
from sparkwright.errors import ConfigurationError, UnavailableError
from sparkwright.files import write_atomic
from sparkwright.pins.load import lines, load_line, load_toolchain
from sparkwright.pins.model import Line
from sparkwright.run import run

HEADER: Final = "# Made from {source} and pins/ by `sparkwright pins lock`; edit those, not this file.\n"
NEVER: Final = 'python_version < "3"'
"""The condition by which an override leaves a project out."""
_PYTHON: Final = "3.11"  # the oldest we support; a universal lock holds for the newer ones too


def lock_names() -> tuple[str, ...]:
    """The lock files of requirements/, by name: one per .in file."""
    return tuple(sorted(path.with_suffix(".txt").name for path in paths.REQUIREMENTS.glob("*.in")))


def overrides_of(source: Path) -> Path:
    """What replaces the wishes of the dependencies of an .in file; a condition that never holds leaves one out."""
    return source.with_suffix(".overrides.txt")


def line_of(lock_name: str) -> Line | None:
    """The release line that a lock file belongs to, or None for one that belongs to no line."""
    for name in lines():
        line = load_line(name)
        if lock_name in line.requirements:
            return line
    return None


def pinned_releases(lock_name: str) -> dict[str, str]:
    """Project and version of all that pins/ decides for a lock file, whether or not the file asks for it."""
    line = line_of(lock_name)
    if line is None:
        return {}
    # A component under a name of its own only lends a file; the environment holds the line's own release of it.
    ours = [component for component in line.components if component.name == component.project]
    pinned = {component.project: component.version for component in (*load_toolchain().components, *ours)}
    return pinned | {"torch": line.torch}


def lock(name: str, *, upgrade: bool = False) -> Path:
    """Make one lock file anew; what it holds already is kept where it still fits, unless `upgrade`.

    Raises:
        ConfigurationError: there is no .in file for it.
        UnavailableError: uv is not installed.
        CommandFailedError: the requirements contradict each other, or the package index cannot be reached.
    """
    target = paths.REQUIREMENTS / name
    source = target.with_suffix(".in")
    if name not in lock_names():
        raise ConfigurationError(
            f"there is no requirements/{source.name} to make {name} from",
            cause=f"the lock files are: {', '.join(lock_names())}",
        )
    places = os.pathsep.join([os.fspath(Path(sys.executable).parent), os.environ.get("PATH", "")])
    uv = shutil.which("uv", path=places)
    if uv is None:
        raise UnavailableError(
            "uv is not installed",
            cause="it is one of the tools of requirements/dev.txt, and this environment was made without them",
            remedy="run ./test.sh --fast once and use .venv/bin/sparkwright",
        )
    with tempfile.TemporaryDirectory() as scratch:
        constraints = Path(scratch) / "constraints.txt"
        exact = [f"{project}=={version}\n" for project, version in sorted(pinned_releases(name).items())]
        constraints.write_text("".join(exact), encoding="utf-8")
        output = Path(scratch) / name
        if target.exists():
            shutil.copyfile(target, output)
        argv: list[str | Path] = [uv, "pip", "compile", source, "--output-file", output, "--constraint", constraints]
        argv += ["--universal", "--generate-hashes", "--no-header", "--no-annotate", "--python-version", _PYTHON]
        overrides = overrides_of(source)
        argv += ["--override", overrides] if overrides.exists() else []
        run([*argv, "--quiet", *(["--upgrade"] if upgrade else [])])
        write_atomic(target, HEADER.format(source=source.name) + output.read_text(encoding="utf-8"))
    return target
