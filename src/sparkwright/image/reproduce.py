"""Whether a second build from nothing makes the same image, and where it differs."""

import hashlib
import json
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import IO, Any, Final, cast

from sparkwright.errors import BuildFailedError
from sparkwright.image.build import Request, build_only, instruction
from sparkwright.image.docker import Docker
from sparkwright.image.record import ImageRecord
from sparkwright.report import note

_NAMED: Final = 12
_BLOBS: Final = "blobs/sha256/"
Files = dict[str, tuple[int, int, str]]
"""Path in a layer: size, time of change, sha256."""


def compare_with_rebuild(request: Request, record: ImageRecord) -> list[tuple[str, str]]:
    """Build the same image again without any cache and name what differs: a layer and the files in it."""
    again = f"{record.tag}-again"
    docker = request.docker
    note(f"building {again} from nothing, to compare")
    build_only(replace(request, tag=again, no_cache=True), arguments=record.arguments)
    try:
        return compare(docker, record, again)
    finally:
        docker.run("image", "rm", again)


def compare(docker: Docker, record: ImageRecord, again: str) -> list[tuple[str, str]]:
    """What differs between two images: the instruction of each layer, and some of its files."""
    one, two = docker.inspect(record.tag), docker.inspect(again)
    first, second = one["RootFS"]["Layers"], two["RootFS"]["Layers"]
    if first == second:
        return []
    if len(first) != len(second):
        return [("all", f"{len(first)} layers, then {len(second)}")]
    changed = [index for index, (mine, other) in enumerate(zip(first, second, strict=True)) if mine != other]
    mine, makers = _read(docker, one, {first[index] for index in changed})
    other, _ = _read(docker, two, {second[index] for index in changed})
    return [
        (
            makers[index] if index < len(makers) else f"layer {index}",
            differing(mine[first[index]], other[second[index]]),
        )
        for index in changed
    ]


def differing(one: Files, other: Files) -> str:
    """In words, what two layers differ in: the files with another content, else those with another time."""
    names = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
    if not names:
        return "the order or the attributes of its files"
    changed = [name for name in names if one.get(name, ())[::2] != other.get(name, ())[::2]]
    if not changed:
        return f"the times of {_listed(names)}"
    touched = len(names) - len(changed)
    return _listed(changed) + (f"; the times of {touched} more" if touched else "")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def _read(docker: Docker, image: Mapping[str, Any], layers: set[str]) -> tuple[dict[str, Files], list[str]]:
    """The files of some layers of an image, and what made each of all its layers: one pass over `docker save`."""
    reference, configuration = image["Id"], _BLOBS + image["Id"].partition(":")[2]
    wanted = {_BLOBS + layer.partition(":")[2]: layer for layer in layers}
    found: dict[str, Files] = {layer: {} for layer in layers}
    makers: list[str] = []
    command = ["docker", "save", reference]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, env=docker.environment) as process,
        tarfile.open(fileobj=cast("IO[bytes]", process.stdout), mode="r|") as archive,
    ):
        for member in archive:
            stream = archive.extractfile(member) if member.isfile() else None
            if stream is None:
                continue
            if member.name in wanted:
                found[wanted[member.name]] = _listing(stream)
            elif member.name == configuration:
                history = json.load(stream)["history"]
                makers = [
                    instruction(entry.get("created_by", ""))[:100] for entry in history if not entry.get("empty_layer")
                ]
    if process.returncode != 0:
        raise BuildFailedError(f"docker save {reference} ended with {process.returncode}")
    return found, makers


def _listing(stream: IO[bytes]) -> Files:
    files: Files = {}
    with tarfile.open(fileobj=stream, mode="r|") as layer:
        for member in layer:
            content = layer.extractfile(member) if member.isfile() else None
            digest = hashlib.file_digest(content, "sha256").hexdigest() if content else member.linkname  # type: ignore[arg-type]
            files[member.name] = (member.size, int(member.mtime), digest)
    return files
