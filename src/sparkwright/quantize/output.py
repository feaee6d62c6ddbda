"""The finished folder: a file per layer, the tensors around the layers byte for byte, index, settings, tokenizer."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO, Final

from sparkwright.checkpoint.checkpoint import CONFIG, INDEX
from sparkwright.checkpoint.headers import Tensor, read_shard
from sparkwright.errors import InputUnreadableError
from sparkwright.files import explain_write_errors, open_atomic, write_atomic, write_json

_PIECE: Final = 16 * 1024 * 1024
_WEIGHTS: Final = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")
_MADE_HERE: Final = (CONFIG, INDEX, "generation_config.json", "hf_quant_config.json")
_TOKENIZER: Final = (".json", ".jinja", ".model", ".txt", ".tiktoken", ".py")


def shard_name(number: int, layers: int) -> str:
    """The file of a layer, or, for `number` == `layers`, of all that is around the layers."""
    return f"model-{number + 1:05}-of-{layers + 1:05}.safetensors"


def copy_rest(
    path: Path, tensors: Mapping[str, Tensor], convert: Mapping[str, tuple[str, Callable[[Tensor], bytes]]]
) -> None:
    """Write tensors of the source into one file, piece by piece; those in `convert` in another type."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, tensor in tensors.items():
        dtype = convert[name][0] if name in convert else tensor.dtype
        size = tensor.elements * (4 if dtype == "F32" else 2) if name in convert else tensor.nbytes
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open_atomic(path) as target:
        target.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in tensors.items():
            if name in convert:
                target.write(convert[name][1](tensor))
            else:
                _copy(tensor, target)


def _copy(tensor: Tensor, target: BinaryIO) -> None:
    with tensor.path.open("rb") as source:
        source.seek(tensor.offset)
        left = tensor.nbytes
        while left:
            piece = source.read(min(left, _PIECE))
            if not piece:
                raise InputUnreadableError(f"{tensor.path} ended in the middle of {tensor.name}")
            target.write(piece)
            left -= len(piece)


def write_index(folder: Path, names: list[str]) -> int:
    """Write the index of the given files; the bytes of all their tensors."""
    places: dict[str, str] = {}
    total = 0
    for name in names:
        for tensor in read_shard(folder / name).tensors:
            places[tensor.name] = name
            total += tensor.nbytes
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))})
    return total


def copy_companions(source: Path, folder: Path) -> list[str]:
    """Copy the tokenizer, the chat template and code of the model's own; not its weights or settings."""
    copied = []
    for path in sorted(source.iterdir()):
        if not path.is_file() or path.name in _MADE_HERE or path.name.endswith(".index.json"):
            continue
        if path.suffix in _TOKENIZER and path.suffix not in _WEIGHTS:
            write_atomic(folder / path.name, path.read_bytes())
            copied.append(path.name)
    return copied


def move_settings(prepared: Path, folder: Path) -> None:
    """Put the settings in place, config.json last: a folder without it is no model to anyone."""
    with explain_write_errors(folder):
        for path in sorted(prepared.iterdir(), key=lambda one: one.name == CONFIG):
            path.replace(folder / path.name)
    shutil.rmtree(prepared)
