"""What a user can choose, and which of it decides the bytes of the result."""

import dataclasses
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any


class KvCache(StrEnum):
    """How the scales of the KV cache are written."""

    NONE = "none"
    FP8 = "fp8"


class Attention(StrEnum):
    """What the attention's projections become."""

    NVFP4 = "nvfp4"
    FP8 = "fp8"
    BF16 = "bf16"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Which modules become NVFP4; `attention` is None where attention is treated like the rest."""

    exclude: tuple[str, ...] = ()
    experts_only: bool = False
    attention: Attention | None = None
    kv_cache: KvCache = KvCache.NONE

    def to_json(self) -> dict[str, Any]:
        """For the report and the digest: equal to what comes back from a file."""
        return {**dataclasses.asdict(self), "exclude": list(self.exclude)}


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Where the calibration data comes from and how much of it is used."""

    data: str
    samples: int = 128
    length: int = 2048
    seed: int = 0
    field: str | None = None
    split: str = "train"

    def to_json(self) -> dict[str, Any]:
        """For the report and the digest."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """How the layers are spread over Ray actors."""

    address: str
    shard_layers: tuple[int, ...] = ()
    actors: int | None = None
    shared_folder: bool = False


@dataclass(frozen=True, kw_only=True)
class Options:
    """One run of `sparkwright quantize`."""

    source: Path
    output: Path
    calibration: Calibration
    recipe: Recipe = Recipe()
    device: str = "auto"
    scratch: Path | None = None
    save_every: int | None = None
    threads: int = 1
    resume: bool = False
    nodes: Nodes | None = None
    memory_limit: int | None = None
