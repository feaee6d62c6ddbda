"""What is installed in an image, asked of the image itself: Python packages with their sizes, system packages."""

import json
from typing import Final, NamedTuple

from sparkwright.image.docker import Docker

_PYTHON: Final = """
import importlib.metadata, json, os
def size(one):
    return sum(os.lstat(path).st_size for file in one.files or () if os.path.lexists(path := one.locate_file(file)))
print(json.dumps([[one.name, one.version, one.read_text("METADATA") or "", size(one)]
                  for one in importlib.metadata.distributions()]))
"""
_SYSTEM: Final = ("dpkg-query", "-W", "-f", "${Package}\t${Version}\t${Architecture}\n")


class Installed(NamedTuple):
    """A Python package."""

    name: str
    version: str
    metadata: str
    size: int
    """Of its files that are there, in bytes."""


def python_packages(docker: Docker, image: str) -> tuple[Installed, ...]:
    """By name. Raises as `Docker.run_container`."""
    found = json.loads(docker.run_container(image, "python", "-c", _PYTHON))
    return tuple(sorted(Installed(*one) for one in found))


def system_packages(docker: Docker, image: str) -> list[list[str]]:
    """Name, version, architecture. Raises as `Docker.run_container`."""
    return [line.split("\t") for line in docker.run_container(image, *_SYSTEM).splitlines()]
