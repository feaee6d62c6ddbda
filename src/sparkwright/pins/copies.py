"""Compare everything that repeats a version or hash of pins/ with pins/ itself."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from sparkwright import paths
from sparkwright.pins.load import lines, load_line, load_releases, load_toolchain
from sparkwright.pins.lock import HEADER, NEVER, line_of, lock_names, overrides_of, pinned_releases
from sparkwright.pins.model import PinnedFile

_LOCKED = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", re.MULTILINE)
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")
_ADDRESS = re.compile(r"://|--(extra-)?index-url|--find-links")


@dataclass(frozen=True, kw_only=True)
class Copy:
    """A file that repeats what pins/ says, and how it is compared: one sentence per difference."""

    path: Path
    differences: Callable[[], Iterator[str]]


def copies() -> tuple[Copy, ...]:
    """Every file of pins/ and requirements/ that repeats something of pins/."""
    locks = [paths.REQUIREMENTS / name for name in lock_names()]
    return (
        Copy(path=paths.PINS, differences=_pins_agree),
        *(Copy(path=path, differences=partial(_lock_agrees, path)) for path in locks),
    )


def _pins_agree() -> Iterator[str]:
    """The same file is pinned alike wherever it stands, and every lock file that a line names exists."""
    seen: dict[str, PinnedFile] = {}
    for file in _all_files():
        if seen.setdefault(file.name, file) != file:
            yield f"{file.name} is pinned twice with different size or sha256"
    for name in lines():
        for lock_name in load_line(name).requirements:
            if lock_name not in lock_names():
                yield f"{name}.toml names {lock_name}, but requirements/ has no .in file for it"


def _all_files() -> Iterator[PinnedFile]:
    for component in (*load_toolchain().components, *load_releases().components):
        yield from component.files
    for name in lines():
        for component in load_line(name).components:
            yield from component.files


def _lock_agrees(path: Path) -> Iterator[str]:
    source = path.with_suffix(".in")
    if not path.exists():
        yield "does not exist; run `sparkwright pins lock`"
        return
    text = path.read_text(encoding="utf-8")
    if not text.startswith(HEADER.format(source=source.name)):
        yield "does not begin with the line that `sparkwright pins lock` writes"
    if _ADDRESS.search(text):
        yield "names a package index; locks must leave that to the machine they are used on"
    # A universal lock may hold two releases of a project, for different Pythons.
    locked: dict[str, set[Version]] = {}
    for name, version in _LOCKED.findall(text):
        locked.setdefault(canonicalize_name(name), set()).add(Version(version))
    left_out = {
        canonicalize_name(override.name)
        for override in _requirements(overrides_of(source))
        if override.marker and str(override.marker) == NEVER
    }
    for requirement in _requirements(source):
        name = canonicalize_name(requirement.name)
        found = locked.get(name, set())
        if not found and name not in left_out:
            yield f"lacks {requirement.name}, which {source.name} asks for"
        for version in found:
            if not requirement.specifier.contains(version, prereleases=True):
                yield f"has {requirement.name} {version}, but {source.name} asks for {requirement.specifier}"
    for name in sorted(left_out & locked.keys()):
        yield f"has {name}, which {overrides_of(source).name} leaves out"
    for project, pinned in pinned_releases(path.name).items():
        for version in locked.get(canonicalize_name(project), set()) - {Version(pinned)}:
            yield f"has {project} {version}, pinned is {pinned}"
    if line_of(path.name) is not None:
        yield from _toolchain_hashes(set(_HASH.findall(text)), locked.keys())


def _requirements(source: Path) -> Iterator[Requirement]:
    """What a requirement file asks for, and the files that it takes in with -r."""
    if not source.exists():
        return
    for line in source.read_text(encoding="utf-8").splitlines():
        wanted = line.partition("#")[0].strip()
        if wanted.startswith("-r "):
            yield from _requirements(source.with_name(wanted.removeprefix("-r ").strip()))
        elif wanted and not wanted.startswith("-"):
            yield Requirement(wanted)


def _toolchain_hashes(hashes: set[str], projects: Iterable[str]) -> Iterator[str]:
    for component in load_toolchain().components:
        if canonicalize_name(component.project) in projects:
            for file in component.files:
                if file.sha256 not in hashes:
                    yield f"lacks the pinned sha256 of {file.name}"
