"""How far every Linear is from the base model's."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from sparkwright.checkpoint import encodings
from sparkwright.checkpoint.checkpoint import CONFIG, Checkpoint
from sparkwright.checkpoint.dequantize import Floats, can_dequantize
from sparkwright.checkpoint.encodings import Encoding
from sparkwright.checkpoint.findings import Finding, Severity, finding
from sparkwright.checkpoint.modules import Module, Role
from sparkwright.checkpoint.values import Reader, sample_rows

_NAMED: Final = 3  # tensors or files named for each fault of the base
# Where transformers puts an expert's projections: the stack, the part of its rows, the number of parts.
_STACKS: Final = {
    "gate_proj": ("gate_up_proj", 0, 2),
    "up_proj": ("gate_up_proj", 1, 2),
    "down_proj": ("down_proj", 0, 1),
}


def bound(encoding: Encoding) -> float:
    """The largest relative L2 error to the base model that a sound weight in this encoding has.

    Measured on Gaussian weights: NVFP4 0.094 to 0.097, MXFP4 0.111 to 0.119, FP8 0.026; two values of a byte
    exchanged give more than 1.
    """
    if encoding.bits == 4:
        return 0.15 if encoding.global_scale else 0.2
    return 0.06 if encoding.bits == 8 else 0.01


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far one weight is from the base model's."""

    module: str
    encoding: str
    error: float
    bound: float


def compare(
    checkpoint: Checkpoint, base: Checkpoint, *, sample: int, advance: Callable[[], None]
) -> tuple[list[Difference], list[str]]:
    """The error of every Linear to the base model's, and the modules that could not be compared."""
    reader, base_reader = Reader(checkpoint), Reader(base)
    differences: list[Difference] = []
    skipped: list[str] = []
    for module in checkpoint.modules.values():
        advance()
        if not module.is_linear or module.encoding is None:
            continue
        other = _counterpart(base, module)
        comparable = other is not None and other.shape == module.shape and base_reader.whole(other)
        # A smoothed weight (pre_quant_scale) is the base's only together with its inputs.
        if not comparable or other is None or not can_dequantize(other) or "pre_quant_scale" in module.parts:
            skipped.append(module.name)
            continue
        if not reader.whole(module) or not can_dequantize(module):
            skipped.append(module.name)
            continue
        error = _relative_error(sample_rows(module, sample), sample_rows(other, sample))
        differences.append(
            Difference(module=module.name, encoding=module.encoding.name, error=error, bound=bound(module.encoding))
        )
    return differences, skipped


def _relative_error(found: Iterator[Floats], wanted: Iterator[Floats]) -> float:
    """The L2 norm of the difference over that of what is wanted; NaN when either is not finite."""
    difference = norm = 0.0
    for mine, theirs in zip(found, wanted, strict=True):
        if not (np.isfinite(mine).all() and np.isfinite(theirs).all()):
            return math.nan
        exact = theirs.astype(np.float64)
        difference += float(np.square(mine - exact).sum())
        norm += float(np.square(exact).sum())
    return math.sqrt(difference / norm) if norm else math.inf if difference else 0.0


def judge_base(base: Checkpoint) -> Iterator[Finding]:
    """What is wrong with the files of the base model, so that it cannot be compared with, or not all of it."""
    faults = [one for one in base.file_findings if one.rule.severity is Severity.ERROR and one.subjects != (CONFIG,)]
    if faults:
        named = [f"{one.rule.code}: {', '.join(one.subjects[:_NAMED])}".removesuffix(": ") for one in faults]
        yield finding("against-broken", named, str(base.root))


def judge_differences(
    checkpoint: Checkpoint, base: Checkpoint, compared: tuple[list[Difference], list[str]], limit: float | None
) -> Iterator[Finding]:
    """The findings of a comparison; `limit` replaces the bounds of the quantized encodings."""
    differences, skipped = compared
    absent = [
        module
        for module in checkpoint.modules.values()
        if module.is_linear and module.weight is not None and not base.lacks_headers and _lacks(base, module)
    ]
    if absent:
        yield finding("against-missing", [module.weight.name for module in absent if module.weight is not None])
    if silent := sorted(set(skipped) - {module.name for module in absent}):
        yield finding("against-not-compared", silent, f"{len(silent)} of {len(silent) + len(differences)}")
    quantized = {name for name, module in checkpoint.modules.items() if module.is_quantized}
    beyond = [
        one for one in differences if not one.error <= (limit if limit and one.module in quantized else one.bound)
    ]
    if beyond:
        worst = max(beyond, key=lambda one: one.error if np.isfinite(one.error) else np.inf)
        detail = f"worst: {worst.module} {worst.error:.4f}, allowed {limit or worst.bound:.4f}"
        yield finding("against-error", [one.module for one in beyond], detail)


def _counterpart(base: Checkpoint, module: Module) -> Module | None:
    """The base's module of the same name; an expert's part of a stack; the embedding for a head tied to it."""
    if module.name in base.modules:
        return base.modules[module.name]
    if module.role is Role.HEAD:
        others = list(base.modules.values())
        if not any(one.role is Role.HEAD for one in others):
            return next((one for one in others if one.name.endswith(("embed_tokens", "wte"))), None)
    return _of_stack(base, module)


def _of_stack(base: Checkpoint, module: Module) -> Module | None:
    """An expert of a base that stacks them: of gate and up the first and the second half of the rows."""
    expert, _, last = module.name.rpartition(".")
    name, half, halves = _STACKS.get(last, ("", 0, 1))
    stack = base.modules.get(f"{expert.rpartition('.')[0]}.{name}")
    if module.expert is None or stack is None or stack.weight is None or stack.encoding is not encodings.FLOAT:
        return None
    experts, rows, columns = stack.shape[0], stack.shape[1] // halves, stack.shape[-1]
    if len(stack.shape) != 3 or module.expert >= experts or (rows, columns) != module.shape:
        return None  # some models store it transposed
    size = rows * columns * stack.weight.nbytes // stack.weight.elements
    offset = stack.weight.offset + (module.expert * halves + half) * size
    return Module(module.name, {"weight": stack.weight._replace(shape=(rows, columns), offset=offset, nbytes=size)})


def _lacks(base: Checkpoint, module: Module) -> bool:
    other = _counterpart(base, module)
    if other is None and module.role is Role.EXPERT:
        return not any(one.stacked_experts for one in base.modules.values())  # the base stacks what is apart here
    return other is None or not _alike(other.shape, module)


def _alike(shape: tuple[int, ...], module: Module) -> bool:
    """Whether a weight of the base has a module's shape; a stack of experts may have its inputs first."""
    return module.shape == shape or (
        module.stacked_experts > 0 and len(shape) > 1 and module.shape == (*shape[:-2], shape[-1], shape[-2])
    )
