"""Read-only views of an upstream source tree: a folder, an archive, or another view with changes on top."""

import tarfile
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Protocol

from sparkwright.errors import InputUnreadableError

_MARKERS = {
    "vllm": "vllm/__init__.py",
    "flashinfer": "flashinfer/__init__.py",
    "cuda": "bin/nvcc",
}
"""A file that every tree of a component has: a wrong folder must not look like a tree in which nothing is to do."""


class Tree(Protocol):
    """Content by path; a path is relative, with forward slashes."""

    def read(self, path: str) -> bytes | None:
        """The content of a file, or None when the tree has no such file."""


class DirectoryTree:
    """A tree unpacked in a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, path: str) -> bytes | None:
        """The content of a file, or None when the tree has no such file."""
        try:
            return (self.root / path).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None


class MappedTree:
    """A tree held in memory."""

    def __init__(self, contents: Mapping[str, bytes]) -> None:
        self._contents = contents

    def read(self, path: str) -> bytes | None:
        """The content of a file, or None when the tree has no such file."""
        return self._contents.get(path)


class OverlayTree:
    """A tree with some files replaced; None stands for a file that is gone."""

    def __init__(self, base: Tree, changes: Mapping[str, bytes | None] | None = None) -> None:
        self._base = base
        self.changes: dict[str, bytes | None] = dict(changes or {})

    def read(self, path: str) -> bytes | None:
        """The content of a file, or None when the tree has no such file."""
        return self.changes[path] if path in self.changes else self._base.read(path)


def marker(component: str) -> str:
    """The file by which a tree of this component is known."""
    return _MARKERS[component]


def open_directory(component: str, root: Path) -> DirectoryTree:
    """View a folder as a tree of a component.

    Raises:
        InputUnreadableError: there is no such folder, or it holds something else.
    """
    if not root.is_dir():
        raise InputUnreadableError(f"{root} is not a folder", remedy=f"name the unpacked source tree of {component}")
    if not (root / marker(component)).is_file():
        raise InputUnreadableError(
            f"{root} is not a source tree of {component}: it has no {marker(component)}",
            remedy="name the folder that holds it, as the unpacked sdist or wheel does",
        )
    return DirectoryTree(root)


def read_archive(archive: Path, paths: Collection[str]) -> MappedTree:
    """Read the named files of an sdist (below its one top folder) or a wheel in one pass.

    Raises:
        InputUnreadableError: the archive is damaged.
    """
    contents: dict[str, bytes] = {}
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as wheel:
                for name in set(paths) & set(wheel.namelist()):
                    contents[name] = wheel.read(name)
        else:
            with tarfile.open(archive) as sdist:
                for member in sdist:
                    path = member.name.partition("/")[2]
                    stream = sdist.extractfile(member) if path in paths and member.isfile() else None
                    if stream is not None:
                        contents[path] = stream.read()
    except (OSError, tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise InputUnreadableError(f"{archive} cannot be read: {error}", cause="the archive is damaged") from error
    return MappedTree(contents)
