"""Checkpoints of real size whose files hold a header and holes."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from sparkwright.checkpoint.headers import BITS

Tensors = dict[str, tuple[str, Sequence[int]]]


def nvfp4(name: str, rows: int, columns: int) -> Tensors:
    return {
        f"{name}.weight": ("U8", (rows, columns // 2)),
        f"{name}.weight_scale": ("F8_E4M3", (rows, columns // 16)),
        f"{name}.weight_scale_2": ("F32", ()),
        f"{name}.input_scale": ("F32", ()),
    }


def bf16(name: str, *shape: int) -> Tensors:
    return {f"{name}.weight": ("BF16", shape)}


def fp8(name: str, rows: int, columns: int) -> Tensors:
    return {
        f"{name}.weight": ("F8_E4M3", (rows, columns)),
        f"{name}.weight_scale": ("F32", ()),
        f"{name}.input_scale": ("F32", ()),
    }


def write_shard(path: Path, tensors: Mapping[str, tuple[str, Sequence[int]]]) -> None:
    """A header with real sizes over a hole: the file claims gigabytes and takes kilobytes."""
    header: dict[str, object] = {}
    at = 0
    for name, (dtype, shape) in tensors.items():
        end = at + math.prod(shape) * BITS[dtype] // 8
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + at)


def write(root: Path, tensors: Tensors, config: Mapping[str, object], *, shards: int = 1) -> Path:
    """A folder of such files, as many as wanted, with what belongs to it."""
    root.mkdir()
    names = list(tensors)
    places: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        mine = names[shard * len(names) // shards : (shard + 1) * len(names) // shards]
        write_shard(root / file, {name: tensors[name] for name in mine})
        places |= dict.fromkeys(mine, file)
    (root / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (root / "config.json").write_text(json.dumps(config))
    (root / "tokenizer.json").write_text("{}")
    (root / "chat_template.jinja").write_text("{{ messages }}")
    return root
