"""Publish a tested image: to a registry, or straight to other machines over ssh."""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Final

from sparkwright.errors import (
    AuditFailedError,
    CommandFailedError,
    InputUnreadableError,
    SparkwrightError,
    UnavailableError,
    UsageError,
)
from sparkwright.image.carry import carry
from sparkwright.image.docker import Docker
from sparkwright.image.record import RELEASED_UNITS, ImageRecord, latest_path, load_record, record_path
from sparkwright.image.revision import read_revision
from sparkwright.report import note

SSH_SCHEME: Final = "ssh://"
_DIGEST: Final = re.compile(r"digest: (sha256:[0-9a-f]{64})")
_NAME: Final = re.compile(r"[a-z0-9.-]+(:\d+)?(/[a-z0-9]+([._-]+[a-z0-9]+)*)+")


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """What became of one destination."""

    to: str
    reference: str
    digest: str = ""
    """Of the manifest in a registry, or the image id on a node."""
    sent: int = 0
    """Bytes that went over the network to a node; a registry does not tell."""
    note: str = ""
    error: str = ""

    def to_json(self) -> dict[str, Any]:
        """For scripts."""
        return asdict(self)


def pushable(docker: Docker, line: str, tag: str = "") -> ImageRecord:
    """The image to push: the one of `tag`, or the one that was built last; refused unless it is proven.

    Raises:
        InputUnreadableError: none was built, or its record is damaged.
        UsageError: it was not tested, is another than the tested one, or was made from uncommitted files.
        AuditFailedError: its audit failed.
    """
    record = load_record(record_path(line, tag) if tag else latest_path(line))
    if record is None:
        raise InputUnreadableError(
            f"no image {tag or 'of ' + line} was built and tested from this checkout",
            remedy="./build.sh; ./build.sh --list names the images there are",
        )
    failed = record.failed()
    if any("audit" in check.name for check in failed):
        raise AuditFailedError(
            f"{record.tag} is not pushed: the audit of its machine code failed",
            cause="; ".join(check.detail for check in failed),
            remedy="build it again; what is wrong stands in build/<line>/image.json",
        )
    if not record.tested:
        names = ", ".join(check.name for check in failed)
        raise UsageError(
            f"{record.tag} is not pushed: " + (f"its tests failed ({names})" if names else "it was not tested"),
            remedy="./build.sh tests what it builds; push what passed",
        )
    if record.units != RELEASED_UNITS:
        raise UsageError(
            f"{record.tag} is not pushed: it holds only the units {record.units!r} of vLLM",
            cause="it was made to try the Dockerfile, not to serve",
            remedy="./build.sh without --units",
        )
    if record.dirty or read_revision().dirty:
        raise UsageError(
            f"{record.tag} is not pushed: "
            + ("it was made from uncommitted files" if record.dirty else "the checkout has uncommitted files"),
            cause="nobody else could make the same image again",
            remedy="commit them and run ./build.sh" if record.dirty else "commit them, or take them away",
        )
    held = docker.image_id(record.tag)
    if held != record.image_id:
        raise UsageError(
            f"{record.tag} is not the image that was tested" if held else f"{record.tag} is no longer in Docker",
            cause="something else was given its tag" if held else "it was removed",
            remedy="./build.sh",
        )
    return record


def check_destinations(destinations: Sequence[str]) -> None:
    """Refuse what is neither a registry name nor a node.

    Raises:
        UsageError: one is not.
    """
    for destination in destinations:
        if destination.startswith(SSH_SCHEME):
            continue
        if not _NAME.fullmatch(destination):
            raise UsageError(
                f"{destination!r} is not a destination",
                remedy="give registry/name, such as registry.example/team/sparkwright without a tag, or ssh://user@node",
            )


def deliver(docker: Docker, record: ImageRecord, destinations: Sequence[str]) -> tuple[Delivery, ...]:
    """Send an image to all destinations, nodes at the same time; one that fails does not stop the others."""

    def one(destination: str) -> Delivery:
        try:
            if destination.startswith(SSH_SCHEME):
                return _to_node(docker, record, destination)
            return _to_registry(docker, record, destination)
        except SparkwrightError as error:
            return Delivery(to=destination, reference=record.tag, error=str(error))

    with ThreadPoolExecutor(max(1, len(destinations))) as pool:
        return tuple(pool.map(one, destinations))


def _to_node(docker: Docker, record: ImageRecord, destination: str) -> Delivery:
    result = carry(docker, record, destination.removeprefix(SSH_SCHEME))
    return Delivery(
        to=destination, reference=record.tag, digest=record.image_id, sent=result.sent, note=result.description
    )


def registry_tags(record: ImageRecord) -> tuple[str, ...]:
    """The tags that an image gets in a registry: its revision, and the day of its commit."""
    return record.tag.rpartition(":")[2], f"{record.line}-{record.created[:10].replace('-', '')}"


def _to_registry(docker: Docker, record: ImageRecord, name: str) -> Delivery:
    digest = ""
    made: list[str] = []
    try:
        for tag in registry_tags(record):
            reference = f"{name}:{tag}"
            docker.run("image", "tag", record.image_id, reference)
            made.append(reference)
            note(f"pushing {reference}")
            # A registry takes the manifest last, so an interrupted push leaves no tag behind.
            answer = docker.run("push", reference)
            found = _DIGEST.search(answer)
            if found is None:
                raise UnavailableError(f"the registry did not tell the digest of {reference}: {answer[-200:]}")
            if digest and found[1] != digest:
                raise UnavailableError(f"the registry holds {reference} as {found[1]}, and the same image as {digest}")
            digest = found[1]
    except CommandFailedError as error:
        raise _refused(name, error) from error
    finally:
        for reference in made:
            docker.run("image", "rm", "--no-prune", reference)
    return Delivery(to=name, reference=", ".join(f"{name}:{tag}" for tag in registry_tags(record)), digest=digest)


def _refused(name: str, error: CommandFailedError) -> SparkwrightError:
    text = error.what.lower()
    last = error.what.splitlines()[-1]
    host = name.partition("/")[0]
    if any(sign in text for sign in ("denied", "unauthorized", "authentication required", "no basic auth")):
        return UnavailableError(
            f"{host} refuses the push: {last}",
            cause="not logged in there, or this account may not write to it",
            remedy=f"docker login {host}",
        )
    if any(sign in text for sign in ("no such host", "connection refused", "i/o timeout", "server gave http")):
        return UnavailableError(
            f"{host} cannot be reached: {last}",
            cause="the name is wrong, the registry is down, or it does not speak https",
            remedy="check the name; nothing was published",
        )
    return error
