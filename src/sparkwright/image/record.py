"""What is known of an image that was built here: build/<line>/image.json, and one such file per tag."""

import json
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, ValidationError

from sparkwright.errors import InputUnreadableError
from sparkwright.files import write_json
from sparkwright.paths import BUILD

RELEASED_UNITS: Final = "native"
"""What an image that serves was compiled with: all in-tree extensions of vLLM."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Check(_Model):
    """One test of a finished image."""

    name: str
    passed: bool
    detail: str = ""


class Layer(_Model):
    """One layer: what made it, and its bytes."""

    created_by: str
    size: int


class Package(_Model):
    """One Python package in the image, and its bytes."""

    name: str
    version: str
    size: int


class ImageRecord(_Model):
    """An image with the result of its tests."""

    line: str
    tag: str
    image_id: str
    platform: str
    revision: str
    dirty: bool
    created: str
    built: str
    seconds: float
    host: str
    """The machine that holds it, `user@node`; empty for this one."""
    arguments: dict[str, str]
    units: str
    """What of vLLM was compiled for it, as its label says."""
    size: int
    layers: tuple[Layer, ...]
    checks: tuple[Check, ...]
    packages: tuple[Package, ...] = ()
    """Largest first; none where its Python does not run."""

    @property
    def tested(self) -> bool:
        """Whether it was tested, and every test passed."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    def failed(self) -> tuple[Check, ...]:
        """The tests that did not pass."""
        return tuple(check for check in self.checks if not check.passed)


def latest_path(line: str) -> Path:
    """The record of the image that was built last."""
    return BUILD / line / "image.json"


def record_path(line: str, tag: str) -> Path:
    """The record of one tag."""
    return BUILD / line / "images" / f"{tag.rpartition(':')[2]}.json"


def sbom_path(line: str, tag: str) -> Path:
    """The bill of materials of one tag."""
    return BUILD / line / "images" / f"{tag.rpartition(':')[2]}.cdx.json"


def store(record: ImageRecord) -> Path:
    """Write both files; returns the one for scripts."""
    value: dict[str, Any] = record.model_dump(mode="json") | {"tested": record.tested}
    write_json(record_path(record.line, record.tag), value)
    write_json(latest_path(record.line), value)
    return latest_path(record.line)


def load_record(path: Path) -> ImageRecord | None:
    """A record, or None when there is none.

    Raises:
        InputUnreadableError: it is damaged.
    """
    if not path.exists():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        value.pop("tested", None)
        return ImageRecord.model_validate(value)
    except (OSError, ValueError, AttributeError, ValidationError) as error:
        raise InputUnreadableError(
            f"{path} is not a record of an image", remedy="remove it and build the image again"
        ) from error
