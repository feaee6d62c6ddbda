"""Hash, write and lock files so that an interruption never leaves half a result."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from sparkwright.errors import LockedError, OutputError


def sha256_bytes(content: bytes) -> str:
    """Hex sha256 of `content`."""
    return hashlib.sha256(content).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextlib.contextmanager
def explain_write_errors(target: Path) -> Iterator[None]:
    """Turn the errors of a full disk or an unwritable folder into an OutputError that names `target`."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise OutputError(
                f"the disk is full: {target} was not written",
                remedy="free some space and run the same command again; nothing half-written was left",
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise OutputError(
                f"{target} cannot be written: {error.strerror}",
                cause="the folder belongs to another user or is mounted read-only",
                remedy="choose a writable folder, or change its owner",
            ) from error
        if error.errno in (errno.EEXIST, errno.ENOTDIR):
            raise OutputError(
                f"{target} cannot be written: a file stands where a folder is needed",
                cause=f"it is {error.filename}",
                remedy="remove or rename that file, or choose another folder",
            ) from error
        raise


@contextlib.contextmanager
def open_atomic(path: Path, *, mode: int | None = None) -> Iterator[BinaryIO]:
    """A stream under a temporary name: at its end flushed to disk and renamed to `path`, on an error removed."""
    with explain_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            temporary.chmod(mode if mode is not None else 0o644)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_atomic(path: Path, content: bytes | str, *, mode: int | None = None) -> None:
    """Write `path` whole or not at all."""
    with open_atomic(path, mode=mode) as stream:
        stream.write(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON with a final newline, atomically."""
    write_atomic(path, json.dumps(value, indent=2, sort_keys=False, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def exclusive_lock(path: Path, *, doing: str, wait: bool = False) -> Iterator[None]:
    """Hold `path`, a lock file or a folder; when another run holds it, say so at once, or `wait` for it to end.

    Raises:
        LockedError: another process holds the lock.
    """
    if path.is_dir():
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    else:
        with explain_write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise LockedError(
                f"another run is already {doing} in {path}",
                remedy="wait for it to end; the lock goes away with the process",
            ) from error
        yield
    finally:
        os.close(handle)
