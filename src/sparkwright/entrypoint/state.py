"""The small files through which the entrypoint, the healthcheck and the smoke test tell each other what they know."""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparkwright.errors import OutputError


def folder() -> Path:
    """Where they lie; SPARKWRIGHT_STATE moves it."""
    chosen = os.environ.get("SPARKWRIGHT_STATE")
    return Path(chosen) if chosen else Path(tempfile.gettempdir()) / f"sparkwright-{os.getuid()}"


def read(name: str) -> dict[str, Any] | None:
    """What was left under a name, or None."""
    try:
        found: dict[str, Any] = json.loads((folder() / f"{name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found


def write(name: str, content: Mapping[str, object]) -> None:
    """Leave something under a name; a reader never sees half of it."""
    target = folder() / f"{name}.json"
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = target.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(dict(content)), encoding="utf-8")
        temporary.replace(target)
    except OSError as error:
        raise OutputError(
            f"{target} cannot be written: {error.strerror}",
            cause="the root is read-only and /tmp is not a tmpfs; vLLM needs it for its sockets too",
            remedy="docker run --read-only needs --tmpfs /tmp",
        ) from error


def clear() -> None:
    """Forget what an earlier start left."""
    for old in folder().glob("*.json"):
        old.unlink(missing_ok=True)
