"""What can only be told from the tensors' values: scales in full, weights in samples."""

from collections.abc import Callable, Iterator
from typing import Final

import numpy as np

from sparkwright.checkpoint import encodings
from sparkwright.checkpoint.checkpoint import Checkpoint
from sparkwright.checkpoint.dequantize import Floats, can_dequantize, chunks, read_floats, readable, rows
from sparkwright.checkpoint.findings import Finding, finding
from sparkwright.checkpoint.headers import Tensor
from sparkwright.checkpoint.modules import Module
from sparkwright.checkpoint.structure import fused_groups

_PIECES: Final = 8  # the sample of a tensor is taken from this many places, the first and the last row among them
_E4M3_MAGNITUDE: Final = 0x7F
_E4M3_SIGN: Final = 0x80
_E8M0_NAN: Final = 0xFF


def check_values(checkpoint: Checkpoint, *, sample: int, advance: Callable[[], None]) -> Iterator[Finding]:
    """Findings that need values; `sample` weights of each tensor are looked at, all of them when it is 0."""
    reader = Reader(checkpoint)
    modules = list(checkpoint.modules.values())
    invalid: list[str] = []
    zero: list[str] = []
    inputs: dict[str, Floats] = {}
    broken: list[str] = []
    for module in modules:
        encoding = module.encoding
        scales_are_sound = True
        if encoding is not None and module.is_quantized:
            for part in (encoding.block_scale, encoding.global_scale):
                if (tensor := reader.get(module, part)) is not None:
                    sound, alive = _judge(tensor)
                    if not sound:
                        invalid.append(tensor.name)
                        scales_are_sound = False
                    elif not alive:
                        zero.append(tensor.name)
            if (tensor := reader.get(module, encoding.input_scale)) is not None and tensor.dtype in encodings.FLOATS:
                inputs[tensor.name] = read_floats(tensor)
        if reader.whole(module) and can_dequantize(module) and scales_are_sound:
            pieces = sample_rows(module, sample)
            if not all(np.isfinite(piece).all() for piece in pieces) and module.weight is not None:
                broken.append(module.weight.name)
        advance()
    if invalid:
        yield finding("weight-scale-invalid", invalid)
    if zero:
        yield finding("weight-scale-zero", zero)
    if broken:
        yield finding("weights-not-finite", broken)
    if wrong := [name for name, value in inputs.items() if not (np.isfinite(value) & (value > 0)).all()]:
        yield finding("input-scale-invalid", wrong)
    if inputs and all((value == 1).all() for value in inputs.values()):
        yield finding("input-scale-ones", inputs)
    yield from _fused_scales(checkpoint, reader)


class Reader:
    """The tensors of a checkpoint whose bytes are all there."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._cut = {tensor.name for shard in checkpoint.shards for tensor in shard.cut_off}

    def get(self, module: Module, part: str | None) -> Tensor | None:
        """The tensor of a part if it can be read."""
        tensor = module.parts.get(part) if part is not None else None
        usable = tensor is not None and tensor.name not in self._cut and tensor.elements and readable(tensor)
        return tensor if usable else None

    def whole(self, module: Module) -> bool:
        """Whether no tensor of a module is cut off."""
        return not any(tensor.name in self._cut for tensor in module.parts.values())


def _judge(tensor: Tensor) -> tuple[bool, bool]:
    """Whether all scales are finite and not negative, and whether any is above zero."""
    if tensor.dtype in ("U8", "F8_E8M0"):  # powers of two: never zero, never negative
        return not any((piece == _E8M0_NAN).any() for piece in chunks(tensor)), True
    if tensor.dtype == "F8_E4M3":
        alive = False
        for piece in chunks(tensor):
            magnitude = piece & _E4M3_MAGNITUDE
            if (magnitude == _E4M3_MAGNITUDE).any() or ((piece & _E4M3_SIGN).astype(bool) & (magnitude > 0)).any():
                return False, True
            alive = alive or bool(magnitude.any())
        return True, alive
    values = read_floats(tensor)
    sound = bool(np.isfinite(values).all() and (values >= 0).all())
    # A single scale is a factor of the whole weight: zero is as wrong there as NaN.
    return sound and (values.size > 1 or bool(values[0] > 0)), bool((values > 0).any())


def sample_rows(module: Module, values: int) -> Iterator[Floats]:
    """Rows of the weight from evenly spaced places, `values` of them in all; the whole weight when it is 0."""
    width = max(module.shape[-1], 1)
    height = module.values // width
    if values == 0:
        values = module.values
        step = max(1, (1 << 22) // width)
        places = [(first, min(step, height - first)) for first in range(0, height, step)]
    else:
        each = max(1, min(values // width // _PIECES, height))
        last = height - each
        firsts = sorted({last * piece // (_PIECES - 1) for piece in range(_PIECES)})
        places = [(first, each) for first in firsts]
    for first, count in places:
        with np.errstate(over="ignore", invalid="ignore"):  # overflow is what is looked for
            piece = rows(module, first, count)
        yield piece


def _fused_scales(checkpoint: Checkpoint, reader: Reader) -> Iterator[Finding]:
    """Global scales that differ within what vLLM makes one layer of."""
    weights: list[str] = []
    inputs: list[str] = []
    for group in fused_groups(checkpoint):
        encoding = group[0].encoding
        if encoding is None or any(one.encoding is not encoding for one in group):
            continue
        for part, found in ((encoding.global_scale, weights), (encoding.input_scale, inputs)):
            tensors = [tensor for one in group if (tensor := reader.get(one, part)) is not None]
            if len({read_floats(tensor).tobytes() for tensor in tensors}) > 1:
                found += [tensor.name for tensor in tensors]
    if weights:
        yield finding("fused-weight-scale-differs", weights)
    if inputs:
        yield finding("fused-input-scale-differs", inputs)
