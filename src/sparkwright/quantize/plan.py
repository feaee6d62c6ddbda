"""What a run will need, from headers alone, and whether it fits."""

import fnmatch
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from sparkwright.errors import ConfigurationError, OutputError, UsageError
from sparkwright.quantize.options import Options, Recipe
from sparkwright.quantize.source import Source

FIXED_BYTES: Final = 2_000_000_000
"""The interpreter with torch, transformers and modelopt, and what small Linears need while they are packed."""
NVFP4_BYTES: Final = 0.5 + 1 / 16
"""Bytes per weight: four bits, and an eight-bit scale for each sixteen."""
PACKING_BYTES: Final = 10.5
"""What modelopt 0.47 takes per weight while it packs a Linear, besides the weight; measured on a CPU."""
_PROGRAM_BYTES: Final = 1_000_000_000
_CGROUP: Final = Path("/sys/fs/cgroup")
_SAVE_EVERY_LAYER_BELOW: Final = 1_000_000_000
_SAVE_SELDOM: Final = 8
_GIGABYTE: Final = 1e9


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Bytes, and how often the hidden states are brought to the disk."""

    layers: int
    parameters: int
    largest_layer: int
    window: int
    memory: int
    scratch: int
    output: int
    save_every: int
    memory_available: int
    output_free: int
    scratch_free: int
    one_disk: bool

    def to_json(self) -> dict[str, Any]:
        """For scripts."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def check(self) -> None:
        """Refuse what cannot fit.

        Raises:
            ConfigurationError: the memory is too small.
            OutputError: a disk is too small.
        """
        if self.memory > self.memory_available:
            raise ConfigurationError(
                f"{_gb(self.memory)} of memory are needed, {_gb(self.memory_available)} are available",
                cause=f"two layers of {_gb(self.largest_layer)} or one and the packing of its largest Linear, "
                f"{_gb(self.window)} for one sample, and the program",
                remedy="end other programs, lower --length, or give a machine with more memory",
            )
        need = self.output + (self.scratch if self.one_disk else 0)
        if need > self.output_free:
            raise OutputError(
                f"{_gb(need)} of disk are needed for the result"
                f"{' and the scratch files' if self.one_disk else ''}, {_gb(self.output_free)} are free",
                remedy="free some space, name another folder, or put the scratch files elsewhere with --scratch",
            )
        if not self.one_disk and self.scratch > self.scratch_free:
            raise OutputError(
                f"{_gb(self.scratch)} of disk are needed for scratch files, {_gb(self.scratch_free)} are free",
                remedy="name another folder with --scratch, or lower --samples or --length",
            )


def make_plan(source: Source, options: Options) -> Plan:
    """Estimate from headers; nothing is loaded."""
    wide = 4 if source.dtype == "float32" else 2
    layers: dict[str, int] = {}
    output = linear = 0
    for name, tensor in source.tensors.items():
        quantized = _is_quantized(name, len(tensor.shape), options.recipe)
        output += math.ceil(tensor.elements * NVFP4_BYTES) if quantized else tensor.nbytes
        if quantized:
            linear = max(linear, tensor.elements)
        if layer := _layer_of(name):
            layers[layer] = layers.get(layer, 0) + tensor.elements * wide
    calibration = options.calibration
    state = calibration.length * source.hidden_size * wide
    inner = max(source.hidden_size, int(source.text.get("intermediate_size") or 0))
    window = 8 * state + 6 * calibration.length * inner * wide
    activations = calibration.samples * state
    largest = max(layers.values(), default=0)
    # A layer whose Linears are packed but for the last and largest: with few large Linears this is the higher peak.
    packing = math.ceil(largest * (1 + NVFP4_BYTES / wide) + linear * PACKING_BYTES) + _PROGRAM_BYTES
    scratch_at, output_at = _existing(options.scratch or options.output), _existing(options.output)
    limit = options.memory_limit
    return Plan(
        layers=source.layers,
        parameters=sum(tensor.elements for tensor in source.tensors.values()),
        largest_layer=largest,
        window=window,
        memory=window + max(2 * largest + FIXED_BYTES, packing),
        scratch=3 * activations,
        output=output,
        save_every=options.save_every or (1 if activations <= _SAVE_EVERY_LAYER_BELOW else _SAVE_SELDOM),
        memory_available=memory_available() if limit is None else limit,
        output_free=shutil.disk_usage(output_at).free,
        scratch_free=shutil.disk_usage(scratch_at).free,
        one_disk=scratch_at.stat().st_dev == output_at.stat().st_dev,
    )


def memory_available() -> int:
    """What this process may still take: of the machine, and of its control group where that has a limit."""
    free = int(psutil.virtual_memory().available)
    try:
        most = (_CGROUP / "memory.max").read_text(encoding="ascii").strip()
        used = int((_CGROUP / "memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return free
    return min(free, int(most) - used) if most.isdecimal() else free


def split_layers(layers: int, count: int, wanted: Sequence[int]) -> list[int]:
    """How many layers each range has: as wanted, or as even as possible, larger ranges first.

    Raises:
        UsageError: what is wanted does not add up, or there are more ranges than layers.
    """
    if wanted:
        if sum(wanted) != layers:
            raise UsageError(
                f"--shard-layers {','.join(map(str, wanted))} makes {sum(wanted)} layers, the model has {layers}",
                remedy="give counts that add up",
            )
        return list(wanted)
    if count > layers:
        raise UsageError(f"{layers} layers cannot be spread over {count} actors", remedy="use fewer --actors")
    least, more = divmod(layers, count)
    return [least + (number < more) for number in range(count)]


def batch_sizes(samples: int, batches: int) -> tuple[int, ...]:
    """Samples of each batch, as even as possible; never an empty batch."""
    count = min(samples, batches)
    least, more = divmod(samples, count)
    return tuple(least + (number < more) for number in range(count))


def _existing(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def _layer_of(name: str) -> str:
    words = name.split(".")
    numbers = [place for place, word in enumerate(words[:-1]) if word.isdecimal()]
    return ".".join(words[: numbers[0] + 1]) if numbers else ""


def _is_quantized(name: str, dimensions: int, recipe: Recipe) -> bool:
    module = name.rpartition(".")[0]
    if dimensions < 2 or not _layer_of(name) or module.endswith((".gate", ".router")):
        return False
    if recipe.experts_only and ".experts." not in name:
        return False
    return not any(fnmatch.fnmatch(module, one) or fnmatch.fnmatch(module, f"{one}.*") for one in recipe.exclude)


def _gb(count: int) -> str:
    return f"{count / _GIGABYTE:,.1f} GB"
