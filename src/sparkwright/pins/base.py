"""The image that the Dockerfile starts from: pins/base.toml."""

from typing import Annotated

from pydantic import StringConstraints

from sparkwright import paths
from sparkwright.pins.load import read
from sparkwright.pins.model import Strict, Text


class Base(Strict):
    """What pins/base.toml says."""

    image: Text
    digest: Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
    apt_snapshot: Annotated[str, StringConstraints(pattern=r"^\d{8}T\d{6}Z$")]
    why: Text


def load_base() -> Base:
    """The base image. Raises as `read`."""
    return read(paths.PINS / "base.toml", Base)
