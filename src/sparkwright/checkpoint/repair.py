"""Mend what is safe to mend, and only what was asked for by name.

No shard is ever rewritten: new scales go to a file of their own beside them, and the index and the JSON files are
replaced. In a new folder the shards are hard links (or copies, on another file system).
"""

import math
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sparkwright.checkpoint.checkpoint import CONFIG, INDEX, JOURNAL, STATE, Checkpoint, read_checkpoint
from sparkwright.checkpoint.repair_config import restored_config, restored_ignore
from sparkwright.checkpoint.repair_files import (
    SIDECAR,
    every_shard,
    input_scales,
    json_bytes,
    missing_tokenizer,
    rebuilt_index,
)
from sparkwright.checkpoint.settings import read_object
from sparkwright.errors import InputUnreadableError, UsageError
from sparkwright.files import exclusive_lock, explain_write_errors, sha256_bytes, sha256_file, write_atomic, write_json

RECEIPT: Final = f"{STATE}/repair.json"

_STAGED: Final = f"{STATE}/repair.staged"
_ORIGINALS: Final = f"{STATE}/originals"


@dataclass(frozen=True, kw_only=True)
class Actions:
    """What was asked for."""

    set_input_scale: float | None = None
    restore_ignore: bool = False
    restore_config: bool = False
    rebuild_index: bool = False
    copy_tokenizer: bool = False
    base: Path | None = None

    def __post_init__(self) -> None:
        asked = (self.restore_ignore, self.restore_config, self.rebuild_index, self.copy_tokenizer)
        if self.set_input_scale is None and not any(asked):
            raise UsageError(
                "no repair was named",
                remedy="name at least one, for instance --rebuild-index; `checkpoint verify` says which would help",
            )
        if (self.restore_config or self.copy_tokenizer) and self.base is None:
            raise UsageError(
                "--restore-config and --copy-tokenizer need --base", remedy="name the folder of the base model"
            )
        scale = self.set_input_scale
        if scale is not None and not (math.isfinite(scale) and scale > 0):
            raise UsageError(f"{scale} is no input scale", remedy="a scale is finite and above zero; 1.0 is customary")

    def to_json(self) -> dict[str, Any]:
        """For the receipt."""
        return {
            "set_input_scale": self.set_input_scale,
            "restore_ignore": self.restore_ignore,
            "restore_config": self.restore_config,
            "rebuild_index": self.rebuild_index,
            "copy_tokenizer": self.copy_tokenizer,
        }


@dataclass(frozen=True, kw_only=True)
class Repaired:
    """What was done: the folder, the files written, and what a reader has to know."""

    directory: Path
    written: tuple[str, ...]
    notices: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Plan:
    files: Mapping[str, bytes]
    notices: tuple[str, ...]


def repair_in_place(root: Path, actions: Actions) -> Repaired:
    """Mend a folder; a crash leaves the old files, or a journal with which the next run finishes.

    Raises:
        InputUnreadableError: the folder or one of its shards cannot be read.
        ConfigurationError: the repair would not mend what it should.
        LockedError: another repair is working there.
    """
    if not root.is_dir():
        raise InputUnreadableError(f"{root} is not a folder")
    with exclusive_lock(root, doing="repairing"), explain_write_errors(root):
        _recover(root)
        checkpoint = read_checkpoint(root)
        plan = _plan(checkpoint, actions)
        if plan.files:
            for name, content in plan.files.items():
                write_atomic(root / _STAGED / name, content)
            write_json(root / JOURNAL, _receipt(root, actions, plan))
            _recover(root)
    return Repaired(directory=root, written=tuple(plan.files), notices=plan.notices)


def repair_into(
    root: Path, output: Path, actions: Actions, *, advance: Callable[[int, int], None] = lambda *_: None
) -> Repaired:
    """Make a mended copy; `output` appears only when it is whole. Doing it again changes nothing.

    `advance` is told how many of how many files have been taken over.

    Raises:
        InputUnreadableError: the folder or one of its shards cannot be read.
        UsageError: `output` exists and is not the result of this repair, or a repair of `root` was interrupted.
        ConfigurationError: the repair would not mend what it should.
    """
    checkpoint = read_checkpoint(root)
    if (root / JOURNAL).exists():
        raise UsageError(
            f"a repair of {root} did not come to its end: its files are a mixture of before and after",
            remedy="run `checkpoint repair --in-place` there first, with any action: it completes that one",
        )
    plan = _plan(checkpoint, actions)
    receipt = _receipt(root, actions, plan)
    if output.resolve().is_relative_to(root.resolve()):
        raise UsageError(
            f"{output} lies in the folder that is repaired", remedy="name another folder, or use --in-place"
        )
    if output.exists():
        if read_object(output / RECEIPT) == receipt:
            return Repaired(directory=output, written=(), notices=())
        raise UsageError(
            f"{output} exists and is not the result of this repair", remedy="name another folder, or remove it"
        )
    partial = output.with_name(f".{output.name}.partial")
    with explain_write_errors(output):
        partial.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(partial, doing="repairing"):
            for left in partial.iterdir():
                shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
            kept = [
                path for path in sorted(root.rglob("*")) if path.is_file() and _is_kept(path.relative_to(root), plan)
            ]
            for done, path in enumerate(kept, start=1):
                _link(path, partial / path.relative_to(root))
                advance(done, len(kept))
            for name, content in plan.files.items():
                write_atomic(partial / name, content)
            write_json(partial / RECEIPT, receipt)
            partial.rename(output)
    return Repaired(directory=output, written=tuple(plan.files), notices=plan.notices)


def _is_kept(relative: Path, plan: _Plan) -> bool:
    return relative.parts[0] != STATE and str(relative) not in plan.files


def _link(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    source = path.resolve()  # the hub's cache keeps links to blobs, whose names have no suffix
    # Settings are copied: somebody may edit them later, and shall not edit the original with them.
    if path.suffix == ".safetensors":
        try:
            os.link(source, target)
        except OSError:  # another file system, or one without hard links
            shutil.copyfile(source, target)
    else:
        shutil.copyfile(source, target)


def _recover(root: Path) -> None:
    """Finish what an interrupted run committed, and forget what it did not."""
    journal = read_object(root / JOURNAL)
    if journal is not None:
        staged = root / _STAGED
        # The index comes last: until then nothing refers to the new files.
        for path in sorted((one for one in staged.rglob("*") if one.is_file()), key=lambda one: one.name == INDEX):
            name = path.relative_to(staged)
            if (root / name).is_file() and not (root / _ORIGINALS / name).exists():
                write_atomic(root / _ORIGINALS / name, (root / name).read_bytes())
            path.replace(root / name)
        write_json(root / RECEIPT, journal)
        (root / JOURNAL).unlink()
    if (root / _STAGED).exists():
        shutil.rmtree(root / _STAGED)


def _receipt(root: Path, actions: Actions, plan: _Plan) -> dict[str, Any]:
    files = [
        {
            "path": name,
            "before": sha256_file(root / name) if (root / name).is_file() else None,
            "after": sha256_bytes(content),
        }
        for name, content in sorted(plan.files.items())
    ]
    earlier = (read_object(root / RECEIPT) or {}).get("repairs")
    this = {"actions": actions.to_json(), "files": files, "notices": list(plan.notices)}
    return {"repairs": [*(earlier if isinstance(earlier, list) else []), this]}


def _plan(checkpoint: Checkpoint, actions: Actions) -> _Plan:
    """The files that have to be written, and their content; none when all is as asked for."""
    if checkpoint.has_broken_shard:
        raise InputUnreadableError(
            f"{checkpoint.root} has missing, unreadable or truncated shards",
            remedy="run `checkpoint verify`, and get these files again: no repair can restore weights",
        )
    files: dict[str, bytes] = {}
    notices: list[str] = []
    shards = every_shard(checkpoint.root) if actions.rebuild_index else list(checkpoint.shards)
    if actions.set_input_scale is not None:
        sidecar = input_scales(checkpoint, actions.set_input_scale)
        if sidecar is not None:
            files[SIDECAR], names = sidecar
            notices.append(
                f"{len(names)} input scales were set to {actions.set_input_scale}, not measured: this costs accuracy "
                "wherever activations are quantized (not with a weight-only backend such as Marlin)"
            )
            files[INDEX] = rebuilt_index(checkpoint, shards, extra=names)
    if actions.rebuild_index and INDEX not in files:
        files[INDEX] = rebuilt_index(checkpoint, shards, extra=())
    config = dict(checkpoint.config)
    if actions.restore_config and actions.base is not None:
        config = restored_config(checkpoint, actions.base)
    if actions.restore_ignore:
        config = restored_ignore(checkpoint, config, files)
    if config != checkpoint.config:
        files[CONFIG] = json_bytes(config)
    if actions.copy_tokenizer and actions.base is not None:
        files |= missing_tokenizer(checkpoint.root, actions.base)
    unchanged = [
        name
        for name, content in files.items()
        if (checkpoint.root / name).is_file() and (checkpoint.root / name).read_bytes() == content
    ]
    return _Plan(files={name: files[name] for name in files if name not in unchanged}, notices=tuple(notices))
