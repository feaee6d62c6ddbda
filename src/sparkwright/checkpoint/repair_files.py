"""What a repair writes beside the shards: missing input scales, the index, the tokenizer."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from sparkwright.checkpoint import encodings
from sparkwright.checkpoint.checkpoint import INDEX, Checkpoint, weight_files
from sparkwright.checkpoint.headers import HeaderError, Shard, read_shard
from sparkwright.checkpoint.settings import as_object, read_object
from sparkwright.checkpoint.structure import needs_input_scale
from sparkwright.errors import ConfigurationError, InputUnreadableError

SIDECAR: Final = "input-scales.safetensors"

_SCALE_BYTES: Final = 4
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


def json_bytes(value: object) -> bytes:
    """Indented JSON, as it is written to a file."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def input_scales(checkpoint: Checkpoint, scale: float) -> tuple[bytes, list[str]] | None:
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


def every_shard(root: Path) -> list[Shard]:
    """The headers of all files that hold weights, whether the index names them or not.

    Raises:
        InputUnreadableError: one cannot be read.
    """
    try:
        return [read_shard(path) for path in weight_files(root)]
    except HeaderError as error:
        raise InputUnreadableError(
            f"a safetensors file of {root} cannot be read: {error}", remedy="get it again, or remove it"
        ) from error


def rebuilt_index(checkpoint: Checkpoint, shards: Sequence[Shard], *, extra: Sequence[str]) -> bytes:
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
    return json_bytes({"metadata": metadata, "weight_map": dict(sorted(places.items()))})


def missing_tokenizer(root: Path, base: Path) -> dict[str, bytes]:
    """Tokenizer files of the base that are not there; none is overwritten."""
    found = {name: base / name for name in _TOKENIZER_FILES if (base / name).is_file()}
    if not found:
        raise InputUnreadableError(f"{base} holds no tokenizer", remedy="name the base model's folder")
    return {name: path.read_bytes() for name, path in found.items() if not (root / name).exists()}
