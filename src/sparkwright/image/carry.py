"""Carry an image to another machine over ssh, without a registry, leaving out the layers that it has.

`docker load` looks a layer up before it reads it, so an archive may lack the layers that the engine holds already, as
long as these are the lowest ones. An engine that wants them all the same gets the whole archive.
"""

import contextlib
import json
import shlex
import shutil
import subprocess
import tarfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any, Final, cast

from sparkwright.errors import CommandFailedError, IntegrityError, UnavailableError
from sparkwright.image.docker import SSH, Docker, require_ssh
from sparkwright.image.record import ImageRecord
from sparkwright.report import note
from sparkwright.run import run

_BLOBS: Final = "blobs/sha256/"
_PIECE: Final = 1 << 20
_NOTE_EVERY: Final = 15.0  # seconds


@dataclass(frozen=True, kw_only=True)
class Carried:
    """What was done."""

    sent: int
    description: str


def carry(docker: Docker, record: ImageRecord, host: str) -> Carried:
    """Bring an image to the engine of `host`, under the same tag.

    Raises:
        UsageError, UnavailableError: the host or its engine cannot be reached.
        IntegrityError: what arrived is not the same image.
    """
    require_ssh(host)
    local = docker.inspect(record.image_id)
    there = _images_there(host)
    if any(_same(local, image) for image in there):
        _ssh(host, "docker", "image", "tag", record.image_id, record.tag)
        return Carried(sent=0, description="was there already")
    layers: list[str] = local["RootFS"]["Layers"]
    shared = _shared(layers, [image["RootFS"]["Layers"] for image in there])
    compressor = _compressor(host)
    left_out = layers_left_out(layers, shared)
    sent = None
    if left_out:
        try:
            sent = _stream(docker, record, host, compressor, left_out=left_out)
        except CommandFailedError as error:
            note(f"{host} wants all layers ({error.what.splitlines()[-1]}); sending the whole image")
            left_out = frozenset()
    if sent is None:
        sent = _stream(docker, record, host, compressor, left_out=frozenset())
    _verify(host, record, local)
    return Carried(
        sent=sent,
        description=f"{shared} of {len(layers)} layers were there" if left_out else f"all {len(layers)} layers sent",
    )


class _Pump(threading.Thread):
    """Moves bytes from one program to the next, and says how many."""

    def __init__(self, source: IO[bytes], target: IO[bytes], what: str) -> None:
        super().__init__(daemon=True)
        self._source, self._target, self._what = source, target, what
        self.sent = 0

    def run(self) -> None:
        """Move all of it; when the far side ends early, close both, so that the program before it ends as well."""
        said = time.monotonic()
        with self._source, contextlib.suppress(BrokenPipeError), self._target:
            while piece := self._source.read(_PIECE):
                self._target.write(piece)
                self.sent += len(piece)
                if time.monotonic() - said > _NOTE_EVERY:
                    said = time.monotonic()
                    note(f"{self._what}: {self.sent / 1e9:.2f} GB sent")


def layers_left_out(layers: Sequence[str], shared: int) -> frozenset[str]:
    """The layers among the lowest `shared` ones that do not come again further up."""
    return frozenset(layers[:shared]) - frozenset(layers[shared:])


def _shared(layers: Sequence[str], others: Sequence[Sequence[str]]) -> int:
    best = 0
    for other in others:
        count = 0
        for mine, theirs in zip(layers, other, strict=False):
            if mine != theirs:
                break
            count += 1
        best = max(best, count)
    return best


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    # Engines with containerd's store name an image by another hash; its layers and configuration are the same.
    if one["Id"] == other["Id"]:
        return True
    return bool(one["RootFS"] == other["RootFS"] and one["Config"] == other["Config"])


def _ssh(host: str, *words: str) -> str:
    return run([*SSH, "--", host, *words])


def _images_there(host: str) -> list[dict[str, Any]]:
    try:
        names = _ssh(host, "docker", "image", "ls", "--all", "--quiet", "--no-trunc").split()
        found: list[dict[str, Any]] = []
        if names:
            found = json.loads(_ssh(host, "docker", "image", "inspect", *dict.fromkeys(names)))
    except CommandFailedError as error:
        raise UnavailableError(
            f"Docker on {host} does not answer: {error.what.splitlines()[-1]}",
            cause="it is not installed there, or this user is not in the group docker",
            remedy=f"make `ssh {host} docker info` work",
        ) from error
    return [image for image in found if image.get("RootFS", {}).get("Layers")]


def _compressor(host: str) -> tuple[tuple[str, ...], str]:
    """The program that packs here, and the command that unpacks and loads there."""
    if shutil.which("zstd"):
        try:
            _ssh(host, "command", "-v", "zstd")
        except CommandFailedError:
            pass
        else:
            return ("zstd", "-3", "-T0", "-q", "-c"), "zstd -d -q -c | docker load"
    return ("gzip", "-1", "-c"), "docker load"


def _stream(
    docker: Docker,
    record: ImageRecord,
    host: str,
    compressor: tuple[tuple[str, ...], str],
    *,
    left_out: frozenset[str],
) -> int:
    """Docker save | filter | pack | ssh: docker load; returns the bytes that crossed the network.

    Raises:
        CommandFailedError: one of the programs failed. Docker gives an image its name only when all of it has arrived.
    """
    pack, load = compressor
    blobs = frozenset(_BLOBS + layer.partition(":")[2] for layer in left_out)
    broken = ""
    with contextlib.ExitStack() as stack:
        pipe, script = subprocess.PIPE, f"bash -c {shlex.quote(f'set -o pipefail; {load}')}"
        saving, sending = ["docker", "save", record.tag], [*SSH, "--", host, script]
        save = stack.enter_context(subprocess.Popen(saving, stdout=pipe, env=docker.environment))
        packer = stack.enter_context(subprocess.Popen(pack, stdin=pipe, stdout=pipe))
        far = stack.enter_context(subprocess.Popen(sending, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT))
        try:
            pump = _Pump(_pipe(packer.stdout), _pipe(far.stdin), f"{record.tag} to {host}")
            pump.start()
            try:
                filter_archive(_pipe(save.stdout), _pipe(packer.stdin), blobs)
            except (BrokenPipeError, tarfile.TarError) as error:
                broken = str(error)
            # What is left in these pipes goes nowhere: docker save ends when nobody reads it.
            for stream in (save.stdout, packer.stdin):
                with contextlib.suppress(BrokenPipeError):
                    _pipe(stream).close()
            pump.join()
            answer = _pipe(far.stdout).read().decode("utf-8", "replace")
            status = [process.wait() for process in (save, packer, far)]
        except BaseException:
            for process in (save, packer, far):
                process.kill()
            raise
    if any(status) or broken:
        raise CommandFailedError(
            f"carrying {record.tag} to {host} broke off"
            f" (docker save ended with {status[0]}, {pack[0]} with {status[1]}, ssh with {status[2]})"
            f"\n{answer.strip() or broken}",
            remedy="run the same command again; the image has no name there yet, so nothing half-done can be started",
        )
    return pump.sent


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    return cast("IO[bytes]", stream)


def filter_archive(archive: IO[bytes], to: IO[bytes], left_out: frozenset[str]) -> None:
    """Copy a docker archive without the named members."""
    with (
        tarfile.open(fileobj=archive, mode="r|") as source,
        tarfile.open(fileobj=to, mode="w|", format=tarfile.PAX_FORMAT) as target,
    ):
        for member in source:
            if member.name in left_out:
                continue
            target.addfile(member, source.extractfile(member) if member.isfile() else None)


def _verify(host: str, record: ImageRecord, local: dict[str, Any]) -> None:
    found: list[dict[str, Any]] = json.loads(_ssh(host, "docker", "image", "inspect", record.tag))
    if not _same(local, found[0]):
        _ssh(host, "docker", "image", "rm", record.tag)
        raise IntegrityError(
            f"what arrived on {host} is not {record.tag}: its id is {found[0]['Id']}, not {record.image_id}",
            cause="the archive was changed on the way",
            remedy="run the same command again; the image was removed there",
        )
