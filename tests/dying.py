"""Let a process die at any of its changes of the disk, without ending the test."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


class Killed(BaseException):
    """Stands for the process ending at this very point."""


def count_writes(monkeypatch: pytest.MonkeyPatch, kill_at: int | None) -> Callable[[], int]:
    """Let the process die before its `kill_at`-th change of the disk; the result tells how many there were."""
    seen = 0

    def counted(function: Callable[..., object]) -> Callable[..., object]:
        def wrapper(*args: object, **kwargs: object) -> object:
            nonlocal seen
            seen += 1
            if seen == kill_at:
                raise Killed
            return function(*args, **kwargs)

        return wrapper

    for owner, name in ((Path, "replace"), (Path, "rename"), (Path, "unlink"), (shutil, "rmtree"), (os, "link")):
        monkeypatch.setattr(owner, name, counted(getattr(owner, name)))
    return lambda: seen
