"""What a run will need, from headers alone, and whether it fits."""

import fnmatch
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from sparkwright.checkpoint.modules import is_vision
from sparkwright.errors import ConfigurationError, OutputError, UsageError
from sparkwright.quantize.options import Attention, Options, Recipe
from sparkwright.quantize.source import Source
from sparkwright.report import gigabytes

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


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Bytes, how often the hidden states are brought to the disk, and the work.

    `read` are the bytes of the layers, each read once. `hidden_states` are the bytes between two layers: they are
    written and read once for each layer, and sent, where the next layer is on another node. `flop` are the
    multiplications and additions of the layers' weights with all tokens; attention's own are not counted.
    """

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
    on_nodes: bool
    flop: int
    read: int
    hidden_states: int

    def to_json(self) -> dict[str, Any]:
        """For scripts."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def saves(self, layer: int) -> bool:
        """Whether the inputs of a layer are brought to the disk: a resumed run begins there."""
        return 0 < layer < self.layers and layer % self.save_every == 0

    @property
    def kept(self) -> int:
        """Scratch files where the result is: on nodes, the inputs to go on with, and those that are on their way."""
        return 2 * self.hidden_states if self.on_nodes else self.scratch

    @property
    def moved(self) -> int:
        """Bytes of hidden states that are written between layers, or sent, if every layer is on another node."""
        if not self.on_nodes:
            return self.layers * self.hidden_states
        return (self.layers - 1 + (self.layers - 1) // self.save_every) * self.hidden_states

    def check(self) -> None:
        """Refuse what cannot fit.

        Raises:
            ConfigurationError: the memory is too small.
            OutputError: a disk is too small.
        """
        if self.memory > self.memory_available:
            raise ConfigurationError(
                f"{gigabytes(self.memory)} of memory are needed, {gigabytes(self.memory_available)} are available",
                cause=f"two layers of {gigabytes(self.largest_layer)} or one and the packing of its largest Linear, "
                f"{gigabytes(self.window)} for one sample, and the program",
                remedy="end other programs, lower --length, or give a machine with more memory",
            )
        # Nodes have further scratch files on disks of their own, and are asked when they are there.
        need = self.output + (self.kept if self.one_disk else 0)
        if need > self.output_free:
            raise OutputError(
                f"{gigabytes(need)} of disk are needed for the result"
                f"{' and the scratch files' if self.one_disk else ''}, {gigabytes(self.output_free)} are free",
                remedy="free some space, name another folder, or put the scratch files elsewhere with --scratch",
            )
        if not self.one_disk and self.kept > self.scratch_free:
            raise OutputError(
                f"{gigabytes(self.kept)} of disk are needed for scratch files, {gigabytes(self.scratch_free)} are free",
                remedy="name another folder with --scratch, or lower --samples or --length",
            )


def make_plan(source: Source, options: Options) -> Plan:
    """Estimate from headers; nothing is loaded."""
    wide = 4 if source.dtype == "float32" else 2
    calibration, recipe = options.calibration, options.recipe
    layers: dict[str, int] = {}
    output = linear = weights = 0
    for name, tensor in source.tensors.items():
        if source.prediction_module(name) or is_vision(name):
            output += tensor.nbytes
            continue
        packed = _packed_bytes(name, len(tensor.shape), recipe)
        output += math.ceil(tensor.elements * packed) if packed else tensor.nbytes
        if packed == NVFP4_BYTES:
            linear = max(linear, tensor.elements)
        if layer := _layer_of(name):
            layers[layer] = layers.get(layer, 0) + tensor.elements * wide
            weights += math.ceil(tensor.elements * _used_by_a_token(name, source)) if len(tensor.shape) > 1 else 0
    state = calibration.length * source.hidden_size * wide
    inner = max(source.hidden_size, int(source.text.get("intermediate_size") or 0))
    window = 8 * state + 6 * calibration.length * inner * wide
    activations = calibration.samples * state
    largest = max(layers.values(), default=0)
    # A layer whose Linears are packed but for the last and largest: with few large Linears this is the higher peak. No
    # sample is under way then.
    packing = math.ceil(largest * (1 + NVFP4_BYTES / wide) + linear * PACKING_BYTES) + _PROGRAM_BYTES
    # What goes into a layer, what comes out, and what a resumed run begins with. On a node: what comes out, what others
    # have not yet read, and finished layers that are not yet sent.
    scratch = 3 * activations + (0 if options.nodes is None else 2 * largest)
    # From a node they have to be sent.
    often = options.nodes is None and activations <= _SAVE_EVERY_LAYER_BELOW
    scratch_at, output_at = _existing(options.scratch or options.output), _existing(options.output)
    limit = options.memory_limit
    return Plan(
        layers=source.layers,
        parameters=sum(tensor.elements for tensor in source.tensors.values()),
        largest_layer=largest,
        window=window,
        memory=max(2 * largest + window + FIXED_BYTES, packing),
        scratch=scratch,
        output=output,
        save_every=options.save_every or (1 if often else _SAVE_SELDOM),
        memory_available=memory_available() if limit is None else limit,
        output_free=shutil.disk_usage(output_at).free,
        scratch_free=shutil.disk_usage(scratch_at).free,
        one_disk=scratch_at.stat().st_dev == output_at.stat().st_dev,
        on_nodes=options.nodes is not None,
        flop=2 * weights * calibration.samples * calibration.length,
        read=sum(layers.values()),
        hidden_states=activations,
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


def deal_layers(layers: int, count: int, wanted: Sequence[int]) -> list[int]:
    """Which of `count` actors has each layer: as many each as wanted, or as even as possible, and in turn.

    Raises:
        UsageError: what is wanted does not add up, or there are more actors than layers.
    """
    if count > layers:
        raise UsageError(f"{layers} layers cannot be spread over {count} actors", remedy="use fewer --actors")
    least, more = divmod(layers, count)
    shares = list(wanted) or [least + (number < more) for number in range(count)]
    if sum(shares) != layers:
        raise UsageError(
            f"--shard-layers {','.join(map(str, shares))} makes {sum(shares)} layers, the model has {layers}",
            remedy="give counts that add up",
        )
    owners: list[int] = []
    for _ in range(layers):
        # The one that is furthest behind its share.
        owners.append(min(range(count), key=lambda one: (owners.count(one) + 0.5) / shares[one]))
    return owners


def _existing(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def _layer_of(name: str) -> str:
    words = name.split(".")
    numbers = [place for place, word in enumerate(words[:-1]) if word.isdecimal()]
    return ".".join(words[: numbers[0] + 1]) if numbers else ""


def _packed_bytes(name: str, dimensions: int, recipe: Recipe) -> float | None:
    """Bytes per weight of the result; None where a tensor stays as it is."""
    module = name.rpartition(".")[0]
    if dimensions < 2 or not _layer_of(name) or module.endswith((".gate", ".router")):
        return None
    if any(fnmatch.fnmatch(module, one) or fnmatch.fnmatch(module, f"{one}.*") for one in recipe.exclude):
        return None
    if recipe.attention is not None and any("attn" in word or "attention" in word for word in module.split(".")):
        return {Attention.NVFP4: NVFP4_BYTES, Attention.FP8: 1.0, Attention.BF16: None}[recipe.attention]
    return None if recipe.experts_only and ".experts." not in name else NVFP4_BYTES


def _used_by_a_token(name: str, source: Source) -> float:
    experts, used = source.text.get("num_experts"), source.text.get("num_experts_per_tok")
    if ".experts." in name and isinstance(experts, int) and isinstance(used, int):
        return used / experts
    return 1.0
