"""Bring a pinned file into the cache, and never hand out one whose content is not the pinned one."""

import hashlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import requests

from sparkwright import paths, report
from sparkwright.errors import IntegrityError, UnavailableError
from sparkwright.files import exclusive_lock, explain_write_errors, sha256_file
from sparkwright.pins import PinnedFile
from sparkwright.sources.index import Index, with_retries


def fetch(file: PinnedFile, *, offline: bool = False) -> Path:
    """The pinned file in the cache, verified just now; downloaded first when it is not there.

    A cached file that is damaged is removed and fetched anew. With `offline`, or SPARKWRIGHT_OFFLINE=1,
    nothing is asked of the network; nor is it when the file is there.

    Raises:
        UnavailableError: the file is not cached and cannot be downloaded.
        IntegrityError: what the index offers is not the pinned file.
        OutputError: the cache cannot be written.
    """
    target = paths.cache() / "downloads" / file.name
    if _is_intact(target, file):
        return target
    if offline or os.environ.get("SPARKWRIGHT_OFFLINE") == "1":
        raise UnavailableError(
            f"{file.name} ({file.project} {file.version}) is not in the cache, and the network is not to be used",
            cause=f"{target} is damaged" if target.exists() else f"{target} does not exist",
            remedy="run the same command once with network, or put the file there",
        )
    with exclusive_lock(target.with_name(f".{target.name}.lock"), doing=f"fetching {file.name}", wait=True):
        # Another process may have fetched it while this one waited.
        if _is_intact(target, file):
            return target
        if target.exists():
            report.note(f"{target} is damaged; it is removed and fetched anew")
            with explain_write_errors(target):
                target.unlink()
        _download(file, target)
    return target


def _is_intact(path: Path, file: PinnedFile) -> bool:
    return path.is_file() and path.stat().st_size == file.size and sha256_file(path) == file.sha256


def _download(file: PinnedFile, target: Path) -> None:
    # A fixed name: the lock is held, and what an interrupted run left is overwritten instead of piling up.
    partial = target.with_name(f".{target.name}.part")

    def attempt() -> None:
        with index.open(address) as pieces:
            write_verified(pieces, file, partial)

    with Index() as index:
        address = with_retries(lambda: index.locate(file), file=file)
        try:
            with_retries(attempt, file=file)
            partial.replace(target)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def write_verified(pieces: Iterable[bytes], file: PinnedFile, partial: Path) -> None:
    """Write what arrives and compare it with the pin; no more is read than the pin allows."""
    digest = hashlib.sha256()
    written = 0
    megabytes = file.size / 1e6
    if not sys.stderr.isatty():
        report.note(f"fetching {file.name} ({max(megabytes, 0.1):.1f} MB)")
    with report.progress(unit="MB") as progress, explain_write_errors(partial), partial.open("wb") as stream:
        task = progress.add_task(f"{file.project} {file.version}", total=megabytes)
        for piece in pieces:
            written += len(piece)
            if written > file.size:
                break
            digest.update(piece)
            stream.write(piece)
            progress.update(task, completed=written / 1e6)
        stream.flush()
        os.fsync(stream.fileno())
    if written < file.size:
        # A server that does not announce the length cannot be told from a broken connection: try again.
        raise requests.ConnectionError(f"{written} of {file.size} bytes arrived")
    if written > file.size or digest.hexdigest() != file.sha256:
        found = f"more than {file.size} bytes" if written > file.size else f"sha256 {digest.hexdigest()}"
        raise IntegrityError(
            f"{file.name} is not the pinned file: it has {found}, pinned are {file.size} bytes, sha256 {file.sha256}",
            cause="the mirror serves another file under this name, or the file was changed on the way",
            remedy="check which index pip is configured for (pip config list)",
        )
