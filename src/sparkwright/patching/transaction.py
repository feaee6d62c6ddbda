"""Change many files of a tree so that a crash at any point leaves the old tree or the new one.

The new contents are staged beside the tree, then a journal is renamed into place: that rename is the commit
point. Before it the tree is the old one. After it the tree counts as the new one: `recover` finishes the
renames, and a reader looks through `PendingTree` until then.
"""

import contextlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict

from sparkwright.errors import OutputError, PatchDriftError
from sparkwright.files import explain_write_errors, sha256_bytes, sha256_file, write_atomic
from sparkwright.patching.receipt import RECEIPT, STATE, Receipt, read_receipt
from sparkwright.patching.tree import DirectoryTree, Tree

_JOURNAL: Final = f"{STATE}/journal.json"
_STAGED: Final = f"{STATE}/staged"
_ORIGINALS: Final = f"{STATE}/originals"


class _Step(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    before: str | None
    after: str | None


class _Journal(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: tuple[_Step, ...]
    receipt: Receipt | None


def original(root: Path, path: str) -> bytes:
    """The content a file had before the first patch."""
    return (root / _ORIGINALS / path).read_bytes()


def _read_journal(root: Path) -> _Journal | None:
    try:
        return _Journal.model_validate_json((root / _JOURNAL).read_bytes())
    except FileNotFoundError:
        return None


class PendingTree:
    """A tree as an interrupted transaction will leave it."""

    def __init__(self, root: Path, journal: _Journal) -> None:
        self._directory = DirectoryTree(root)
        self._root = root
        self._gone = {step.path for step in journal.steps if step.after is None}

    def read(self, path: str) -> bytes | None:
        """The content of a file, or None when the tree has no such file."""
        if path in self._gone:
            return None
        staged = self._root / _STAGED / path
        return staged.read_bytes() if staged.is_file() else self._directory.read(path)


def pending(root: Path) -> tuple[Tree, Receipt | None] | None:
    """The tree and receipt that an interrupted transaction will leave; None when none was interrupted."""
    journal = _read_journal(root)
    return None if journal is None else (PendingTree(root, journal), journal.receipt)


def recover(root: Path) -> bool:
    """Finish an interrupted transaction; False when there was none.

    Raises:
        PatchDriftError: a file is neither as it was before nor as it should become.
    """
    journal = _read_journal(root)
    if journal is not None:
        _finish(root, journal)
        return True
    if read_receipt(root) is None:
        _clear(root)  # copies made by a first run that ended before its commit point
    return False


def commit(root: Path, changes: Mapping[str, bytes | None], receipt: Receipt | None) -> None:
    """Write `changes` (None removes a file) and the receipt (None removes it), all or nothing.

    The content that a file had before its first patch is kept until no receipt names the file any more.

    Raises:
        OutputError: the tree cannot be written; nothing was changed.
    """
    tree = DirectoryTree(root)
    steps = []
    with explain_write_errors(root):
        shutil.rmtree(root / _STAGED, ignore_errors=True)  # left by a run that ended before its commit point
        kept = _named_in_receipt(root)
        for path, content in changes.items():
            _require_writable(root / path)
            before = tree.read(path)
            if before is not None and path not in kept:
                write_atomic(root / _ORIGINALS / path, before)
            if content is not None:
                mode = (root / path).stat().st_mode & 0o7777 if before is not None else None
                write_atomic(root / _STAGED / path, content, mode=mode)
            steps.append(
                _Step(
                    path=path,
                    before=None if before is None else sha256_bytes(before),
                    after=None if content is None else sha256_bytes(content),
                )
            )
        journal = _Journal(steps=tuple(steps), receipt=receipt)
        write_atomic(root / _JOURNAL, journal.model_dump_json())
        _finish(root, journal)


def _named_in_receipt(root: Path) -> frozenset[str]:
    receipt = read_receipt(root)
    return frozenset(receipt.first_and_last()) if receipt else frozenset()


def _require_writable(path: Path) -> None:
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK):
        raise OutputError(
            f"{folder} cannot be written, so nothing was changed",
            cause="the tree belongs to another user or is mounted read-only",
            remedy="work on a copy that you own",
        )


def _finish(root: Path, journal: _Journal) -> None:
    for step in journal.steps:
        target, staged = root / step.path, root / _STAGED / step.path
        found = sha256_file(target) if target.is_file() else None
        if found not in (step.before, step.after):
            raise PatchDriftError(
                f"{target} changed while a patch run was interrupted",
                remedy="unpack the source again",
            )
        if step.after is None:
            target.unlink(missing_ok=True)
        elif staged.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            staged.replace(target)
        elif found != step.after:
            raise PatchDriftError(
                f"{staged} is lost, so {target} cannot be completed", remedy="unpack the source again"
            )
    if journal.receipt is None:
        (root / RECEIPT).unlink(missing_ok=True)
    else:
        write_atomic(root / RECEIPT, journal.receipt.model_dump_json(indent=2) + "\n")
    (root / _JOURNAL).unlink()
    _tidy(root, journal.receipt)


def _clear(root: Path) -> None:
    """Remove all of ours from the tree; the folder stays while something else lies in it."""
    for name in (_STAGED, _ORIGINALS):
        if (root / name).is_dir():
            shutil.rmtree(root / name)
    with contextlib.suppress(OSError):  # not there, or not empty: the note of `unpack` lies there
        (root / STATE).rmdir()


def _tidy(root: Path, receipt: Receipt | None) -> None:
    """Drop what no receipt needs any more; a revert leaves no trace."""
    if receipt is None:
        _clear(root)
        return
    shutil.rmtree(root / _STAGED, ignore_errors=True)  # absent when the transaction only removed files
    needed = {path for path, (before, _) in receipt.first_and_last().items() if before is not None}
    originals = root / _ORIGINALS
    for file in [path for path in originals.rglob("*") if path.is_file()]:
        if str(file.relative_to(originals)) not in needed:
            file.unlink()
