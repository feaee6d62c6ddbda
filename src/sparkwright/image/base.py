"""The base image as its registry has it now: for the day on which the pinned digest is gone."""

import json
import re
from typing import Final

from sparkwright.errors import CommandFailedError, UnavailableError
from sparkwright.image.docker import Docker

_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")


def current_digest(docker: Docker, image: str) -> str:
    """The digest of all architectures' list under a tag, such as ubuntu:24.04.

    Raises:
        UnavailableError: Docker or the registry cannot be reached, or it has no arm64 image of that name.
    """
    docker.require_engine()
    try:
        manifest = json.loads(docker.run("buildx", "imagetools", "inspect", image, "--format", "{{json .Manifest}}"))
    except CommandFailedError as error:
        raise UnavailableError(
            f"the registry was not able to tell what {image} is: {error.what.splitlines()[-1]}",
            cause="no network, or the registry no longer has this name",
            remedy="check the name in pins/base.toml",
        ) from error
    machines = {(entry.get("platform") or {}).get("architecture") for entry in manifest.get("manifests", [])}
    digest = str(manifest.get("digest", ""))
    if "arm64" not in machines or not _DIGEST.fullmatch(digest):
        raise UnavailableError(
            f"{image} is not an image for arm64 in its registry",
            cause="the name means an image of one other architecture",
            remedy="name one in pins/base.toml that exists for arm64",
        )
    return digest
