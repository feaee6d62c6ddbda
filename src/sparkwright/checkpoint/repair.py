"""Mend what is safe to mend, and only what was asked for by name.

No shard is ever rewritten: new scales go to a file of their own beside them, and the index and the JSON files are
replaced. In a new folder the shards are hard links (or copies, on another file system).
"""

import json
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from sparkwright.checkpoint import encodings
from sparkwright.checkpoint.checkpoint import CONFIG, INDEX, JOURNAL, STATE, Checkpoint, read_checkpoint, weight_files
from sparkwright.checkpoint.headers import HeaderError, Shard, read_shard
from sparkwright.checkpoint.modules import Module
from sparkwright.checkpoint.settings import QuantSettings, as_object, ignore_key, parse, read_object
from sparkwright.checkpoint.structure import check_structure, needs_input_scale
from sparkwright.errors import ConfigurationError, InputUnreadableError, UsageError
from sparkwright.files import exclusive_lock, explain_write_errors, sha256_bytes, sha256_file, write_atomic, write_json

RECEIPT: Final = f"{STATE}/repair.json"
SIDECAR: Final = "input-scales.safetensors"
HF_QUANT: Final = "hf_quant_config.json"

_STAGED: Final = f"{STATE}/repair.staged"
_ORIGINALS: Final = f"{STATE}/originals"
_SCALE_BYTES: Final = 4
_FIELDS: Final = (
    "num_hidden_layers",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
_TOKENIZER_FILES: Final = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "tiktoken.model",
    "tekken.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)


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
    shards = _every_shard(checkpoint.root) if actions.rebuild_index else list(checkpoint.shards)
    if actions.set_input_scale is not None:
        sidecar = _input_scales(checkpoint, actions.set_input_scale)
        if sidecar is not None:
            files[SIDECAR], names = sidecar
            notices.append(
                f"{len(names)} input scales were set to {actions.set_input_scale}, not measured: this costs accuracy "
                "wherever activations are quantized (not with a weight-only backend such as Marlin)"
            )
            files[INDEX] = _index(checkpoint, shards, extra=names)
    if actions.rebuild_index and INDEX not in files:
        files[INDEX] = _index(checkpoint, shards, extra=())
    config = dict(checkpoint.config)
    if actions.restore_config and actions.base is not None:
        config = _restored_config(checkpoint, _base_config(actions.base))
    if actions.restore_ignore:
        config = _restored_ignore(checkpoint, config, files)
    if config != checkpoint.config:
        files[CONFIG] = _json(config)
    if actions.copy_tokenizer and actions.base is not None:
        files |= _tokenizer(checkpoint.root, actions.base)
    unchanged = [
        name
        for name, content in files.items()
        if (checkpoint.root / name).is_file() and (checkpoint.root / name).read_bytes() == content
    ]
    return _Plan(files={name: files[name] for name in files if name not in unchanged}, notices=tuple(notices))


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _input_scales(checkpoint: Checkpoint, scale: float) -> tuple[bytes, list[str]] | None:
    """A file with the input scales that are missing, and their names."""
    import numpy as np
    from safetensors.numpy import save

    tensors = {}
    for module in checkpoint.modules.values():
        encoding = module.encoding
        if encoding is None or encoding.input_scale is None or encoding.input_scale in module.parts:
            continue
        if needs_input_scale(checkpoint, module):
            value = np.float32(1 / scale if encoding.global_is_divisor else scale)
            shape: tuple[int, ...] = (1,) if encoding is encodings.PACKED_NVFP4 else ()
            tensors[f"{module.name}.{encoding.input_scale}"] = np.full(shape, value, dtype=np.float32)
    if not tensors:
        return None
    if (checkpoint.root / SIDECAR).exists():
        raise ConfigurationError(
            f"{SIDECAR} is there already, yet input scales are missing",
            remedy="remove the file and its entries of the index, or use --rebuild-index first",
        )
    return save(tensors), sorted(tensors)


def _every_shard(root: Path) -> list[Shard]:
    try:
        return [read_shard(path) for path in weight_files(root)]
    except HeaderError as error:
        raise InputUnreadableError(
            f"a safetensors file of {root} cannot be read: {error}", remedy="get it again, or remove it"
        ) from error


def _index(checkpoint: Checkpoint, shards: Sequence[Shard], *, extra: Sequence[str]) -> bytes:
    """The index of the shards and of `extra` scales in the sidecar; byte for byte the old one if it says the same."""
    places: dict[str, str] = {}
    for shard in shards:
        for tensor in shard.tensors:
            if tensor.name in places:
                raise ConfigurationError(
                    f"{tensor.name} stands in {places[tensor.name]} and in {shard.path.name}",
                    cause="a second copy of the weights lies in the folder",
                    remedy="remove the file that does not belong to the model",
                )
            places[tensor.name] = shard.path.name
    places |= dict.fromkeys(extra, SIDECAR)
    path = checkpoint.root / INDEX
    if places == checkpoint.index:
        return path.read_bytes()
    total = sum(tensor.nbytes for shard in shards for tensor in shard.tensors) + _SCALE_BYTES * len(extra)
    metadata = as_object((read_object(path) or {}).get("metadata")) | {"total_size": total}
    return _json({"metadata": metadata, "weight_map": dict(sorted(places.items()))})


def _base_config(base: Path) -> dict[str, Any]:
    config = read_object(base / CONFIG)
    if config is None:
        raise InputUnreadableError(
            f"{base / CONFIG} is not a readable JSON object", remedy="name the base model's folder"
        )
    return config


def _restored_config(checkpoint: Checkpoint, base: Mapping[str, Any]) -> dict[str, Any]:
    """The config with the base's sizes and token ids; everything else stays."""
    restored = dict(checkpoint.config)
    for place in ("", "text_config"):
        source = as_object(base.get(place)) if place else base
        target = dict(as_object(restored.get(place))) if place else restored
        if place and place not in restored:
            continue
        target |= {field: source[field] for field in _FIELDS if field in source}
        if place:
            restored[place] = target
    remaining = [
        one
        for one in check_structure(replace(checkpoint, config=restored))
        if one.rule.code.startswith("config-") and one.rule.code != "config-unreadable"
    ]
    if remaining:
        raise ConfigurationError(
            "the base model's config does not fit these weights either: "
            + "; ".join(f"{one.rule.code} ({one.detail})" for one in remaining),
            cause="--base names another model",
            remedy="name the model that was quantized",
        )
    return restored


def _restored_ignore(checkpoint: Checkpoint, config: dict[str, Any], files: dict[str, bytes]) -> dict[str, Any]:
    """The config with an ignore list that says what the tensors are; `hf_quant_config.json` joins `files`."""
    settings = checkpoint.quant
    if settings is None or not settings.decides_by_ignore:
        raise ConfigurationError(
            f"{checkpoint.root} does not say how it is quantized",
            remedy="restore quantization_config in config.json from the tool that quantized the model",
        )
    ignore = _sound_ignore(checkpoint, settings)
    other = read_object(checkpoint.root / HF_QUANT)
    if other is not None and sorted(parse(other).ignore) != sorted(ignore):
        files[HF_QUANT] = _json(_with_ignore(other, ignore))
    raw = config.get("quantization_config")
    if not isinstance(raw, dict) and other is None:
        raise ConfigurationError(
            "quantization_config is not in its usual place",
            cause="config.json keeps it in another part",
            remedy="write its ignore list by hand: " + ", ".join(ignore),
        )
    if not isinstance(raw, dict) or sorted(settings.ignore) == sorted(ignore):
        return config
    return config | {"quantization_config": _with_ignore(raw, ignore)}


def _with_ignore(raw: Mapping[str, Any], ignore: list[str]) -> dict[str, Any]:
    if "quantization" in raw:
        nested = as_object(raw["quantization"])
        return dict(raw) | {"quantization": nested | {ignore_key(nested): ignore}}
    return dict(raw) | {ignore_key(raw): ignore}


def _sound_ignore(checkpoint: Checkpoint, settings: QuantSettings) -> list[str]:
    """Entries that hide no quantized layer, and every layer that is not quantized and not yet covered."""
    modules = [module for module in checkpoint.modules.values() if module.is_linear]
    quantized = [module for module in modules if module.is_quantized]

    def hides(entry: str) -> list[Module]:
        return [module for module in quantized if replace(settings, ignore=(entry,)).ignores(module)]

    kept = [entry for entry in settings.ignore if not hides(entry)]
    sofar = replace(settings, ignore=tuple(kept))
    missing = [module.name for module in modules if not module.is_quantized and not sofar.ignores(module)]
    for name in missing:
        if hidden := hides(name):
            raise ConfigurationError(
                f"ignoring {name} would hide {hidden[0].name}, which is quantized",
                cause="vLLM looks for modelopt's entries anywhere in a layer's name",
                remedy="quantize again with both layers alike",
            )
    return kept + missing


def _tokenizer(root: Path, base: Path) -> dict[str, bytes]:
    """Tokenizer files of the base that are not there; none is overwritten."""
    found = {name: base / name for name in _TOKENIZER_FILES if (base / name).is_file()}
    if not found:
        raise InputUnreadableError(f"{base} holds no tokenizer", remedy="name the base model's folder")
    return {name: path.read_bytes() for name, path in found.items() if not (root / name).exists()}
