"""The sources of a line: fetched, unpacked and patched."""

from pathlib import Path

from sparkwright.errors import IntegrityError
from sparkwright.files import sha256_bytes
from sparkwright.patching.engine import Examination, apply_series, examine
from sparkwright.patching.tree import read_archive
from sparkwright.paths import cache
from sparkwright.pins import Line, PinnedFile
from sparkwright.sources import fetch, unpack


def pristine_tree(file: PinnedFile, *, offline: bool = False) -> Path:
    """The unpacked archive in the cache; whoever gets it only reads it."""
    folder = cache() / "trees" / f"{file.project}-{file.version}-{file.kind}-{file.sha256[:12]}"
    return unpack(fetch(file, offline=offline), folder, reuse=True)


def cutlass_headers(line: Line, *, offline: bool = False) -> Path:
    """The folder with CUTLASS's `include` and `tools`, from the file that pins/ chooses for the line."""
    return pristine_tree(line.cutlass_file(), offline=offline) / line.cutlass.path


def patch(tree: Path, component: str, version: str) -> Examination:
    """Apply the series of a component; files that are as they should be keep their time, so nothing is rebuilt.

    Raises:
        PatchDriftError: the tree is not what the patches were written for.
    """
    return apply_series(tree, component, version)


def verify(tree: Path, archive: Path, component: str, version: str) -> int:
    """Compare a patched tree with its archive: every file that a patch may touch is the pinned one, or as patched.

    Returns the number of files compared.

    Raises:
        IntegrityError: a file is neither.
    """
    examination = examine(tree, component, version)
    spans = examination.receipt.first_and_last() if examination.receipt else {}
    paths = sorted({path for finding in examination.findings for path in finding.patch.paths()} | spans.keys())
    original = read_archive(archive, paths)
    for path in paths:
        before, now = original.read(path), examination.current.read(path)
        first, last = spans.get(path, (_digest(before), _digest(before)))
        if (_digest(before), _digest(now)) != (first, last):
            raise IntegrityError(
                f"{tree / path} is neither the file of {archive.name} nor what the patches made of it",
                cause="it was edited by hand",
                remedy=f"remove {tree} and run the same command again",
            )
    return len(paths)


def _digest(content: bytes | None) -> str | None:
    return None if content is None else sha256_bytes(content)
