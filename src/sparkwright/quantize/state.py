"""What a run leaves on the disk so that it can go on after any interruption: JSON and safetensors only."""

import json
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

from sparkwright.checkpoint.checkpoint import STATE
from sparkwright.errors import InputUnreadableError, UsageError
from sparkwright.files import write_json

FOLDER: Final = f"{STATE}/quantize"
_RUN: Final = "run.json"


def read_position(path: Path) -> int | None:
    """The layer whose inputs are on the disk for sure, with all layers before it; None at the very beginning."""
    if not path.exists():
        return None
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["layer"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputUnreadableError(f"{path} is damaged: {error}", remedy="start anew, in another folder") from error


def write_position(path: Path, layer: int) -> None:
    """Note that all before `layer` is done."""
    write_json(path, {"layer": layer})


def without_gap(done: Collection[int], start: int) -> range:
    """The layers from `start` on that are done, up to the first that is not."""
    end = start
    while end in done:
        end += 1
    return range(start, end)


def begin(output: Path, identity: Mapping[str, Any], *, resume: bool) -> Path:
    """The folder of the run's state in the output folder; a new run must find the output empty, a resumed one its own.

    One that ended before it did anything, because its nodes could not be reached for instance, is in nobody's way.

    Raises:
        UsageError: the output holds something else, or a run with other inputs.
    """
    folder = output / FOLDER
    path = folder / _RUN
    if begun(output) or (resume and path.exists()):
        if not resume:
            raise UsageError(
                f"{output} holds a run that did not come to its end",
                remedy="add --resume to go on with it, or remove the folder to start anew",
            )
        before = json.loads(path.read_text(encoding="utf-8"))
        changed = sorted(name for name in {*before, *identity} if before.get(name) != identity.get(name))
        if changed:
            raise UsageError(
                f"{output} holds a run with other inputs: {', '.join(changed)} changed",
                cause="what is quantized already would not match the rest",
                remedy="give the same model, data and options as before, or remove the folder to start anew",
            )
        _remove_unfinished(output)
        return folder
    if output.is_dir() and any(one.name != STATE for one in output.iterdir()):
        raise UsageError(f"{output} is not empty", remedy="name a new folder for the result")
    write_json(path, identity)
    return folder


def begun(output: Path) -> bool:
    """Whether there is a run that did something already."""
    run = output / FOLDER / _RUN
    return run.exists() and any(one.is_file() and one != run for one in output.rglob("*"))


def _remove_unfinished(output: Path) -> None:
    """Files that a killed run was writing: they have the hidden names that they bear until they are whole."""
    for path in output.glob(".*"):
        if path.is_file():
            path.unlink()


def end(output: Path) -> None:
    """Remove the state of a run that came to its end, or what is left of it."""
    shutil.rmtree(output / FOLDER, ignore_errors=True)
    _remove_unfinished(output)
    if (output / STATE).is_dir() and not any((output / STATE).iterdir()):
        (output / STATE).rmdir()
