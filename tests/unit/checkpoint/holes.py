"""Checkpoints of real size whose files hold a header and holes."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

from sparkwright.checkpoint.headers import BITS

Tensors = dict[str, tuple[str, tuple[int, ...]]]


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


def write(root: Path, tensors: Tensors, config: Mapping[str, object], *, shards: int = 1) -> Path:
    """Headers with real sizes over holes: the files claim gigabytes and take kilobytes."""
    root.mkdir()
    names = list(tensors)
    places: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        header: dict[str, object] = {}
        at = 0
        for name in names[shard * len(names) // shards : (shard + 1) * len(names) // shards]:
            dtype, shape = tensors[name]
            end = at + math.prod(shape) * BITS[dtype] // 8
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, end]}
            places[name] = file
            at = end
        text = json.dumps(header).encode()
        with (root / file).open("wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            stream.truncate(8 + len(text) + at)
    (root / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (root / "config.json").write_text(json.dumps(config))
    (root / "tokenizer.json").write_text("{}")
    (root / "chat_template.jinja").write_text("{{ messages }}")
    return root
