"""The images of sparkwright that an engine holds: to roll back to, or to prune."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from sparkwright.errors import CommandFailedError
from sparkwright.image.docker import Docker
from sparkwright.image.record import load_record, record_path
from sparkwright.image.revision import LATEST, REPOSITORY
from sparkwright.report import note


@dataclass(frozen=True, kw_only=True)
class Held:
    """One tagged image."""

    reference: str
    image_id: str
    line: str
    revision: str
    created: str
    size: int
    tested: bool
    """Whether it was built and tested from this checkout."""

    def to_json(self) -> dict[str, Any]:
        """For scripts."""
        return asdict(self)


def held_images(docker: Docker, *, line: str | None = None) -> tuple[Held, ...]:
    """The tagged images of a line, or of all lines, newest revision first. Raises as `Docker.require_engine`."""
    docker.require_engine()
    label = f"label=sparkwright.line={line}" if line else "label=sparkwright.line"
    names = docker.run(
        "image", "ls", "--filter", label, "--filter", f"reference={REPOSITORY}", "--format", "{{.Repository}}:{{.Tag}}"
    )
    references = sorted({name for name in names.split() if not name.endswith(":<none>")} - {LATEST})
    if not references:
        return ()
    found: list[dict[str, Any]] = json.loads(docker.run("image", "inspect", *references))
    images = [_held(entry, name) for entry in found for name in entry["RepoTags"] if name in references]
    return tuple(sorted(set(images), key=lambda one: (one.created, one.reference), reverse=True))


def _held(entry: dict[str, Any], reference: str) -> Held:
    labels: dict[str, str] = (entry.get("Config") or {}).get("Labels") or {}
    line = labels.get("sparkwright.line", "")
    record = load_record(record_path(line, reference))
    return Held(
        reference=reference,
        image_id=entry["Id"],
        line=line,
        revision=labels.get("org.opencontainers.image.revision", ""),
        created=labels.get("org.opencontainers.image.created") or str(entry.get("Created", "")),
        size=int(entry["Size"]),
        tested=record is not None and record.tested and record.image_id == entry["Id"],
    )


def superseded(images: tuple[Held, ...], *, keep: int) -> tuple[Held, ...]:
    """Those of one line's images that go when only the `keep` newest stay; tags of one image count once."""
    kept: list[str] = []
    for image in images:
        if image.image_id not in kept and len(kept) < keep:
            kept.append(image.image_id)
    return tuple(image for image in images if image.image_id not in kept)


def remove(docker: Docker, images: tuple[Held, ...]) -> tuple[str, ...]:
    """Remove the tags of images; one that a container uses stays, and is said so. Returns what was removed."""
    gone: list[str] = []
    for image in images:
        try:
            docker.run("image", "rm", image.reference)
        except CommandFailedError as error:
            note(f"{image.reference} stays: {error.what.splitlines()[-1]}")
        else:
            gone.append(image.reference)
    return tuple(gone)
