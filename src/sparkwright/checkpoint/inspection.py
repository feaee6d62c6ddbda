"""What a checkpoint is: its format, what its layers are stored as, and how large it is."""

from collections import Counter, defaultdict
from typing import Any

from sparkwright.checkpoint import encodings
from sparkwright.checkpoint.checkpoint import Checkpoint
from sparkwright.checkpoint.modules import Module
from sparkwright.checkpoint.roofline import roofline
from sparkwright.checkpoint.settings import QuantSettings, number


def format_name(checkpoint: Checkpoint) -> str:
    """The format by what the tensors are; several, where layers differ."""
    counts: Counter[str] = Counter()
    for module in checkpoint.modules.values():
        if module.is_quantized:
            counts[_name(module, checkpoint.quant)] += module.values
    if counts:
        return " + ".join(name for name, _ in counts.most_common())
    types = Counter[str]()
    for tensor in checkpoint.tensors.values():
        types[tensor.dtype] += tensor.nbytes
    return types.most_common(1)[0][0] if types else "none"


def _name(module: Module, settings: QuantSettings | None) -> str:
    encoding = module.encoding
    if encoding is None:
        return "none"
    if encoding.input_scale and encoding.global_scale:
        measured = encoding.input_scale in module.parts
        group = settings.group_of(module) if settings is not None else None
        wanted = group is None or group.quantizes_activations
        return encoding.name if measured or wanted else f"{encoding.name}, weights only (W4A16)"
    if encoding in (encodings.FP8, encodings.BLOCK_FP8) and settings is not None and settings.method:
        return encoding.name if settings.method == "fp8" else f"{settings.method} {encoding.name}"
    return encoding.name


def inspect(checkpoint: Checkpoint) -> dict[str, Any]:
    """Everything that `sparkwright checkpoint inspect` shows, as plain data."""
    kinds: dict[tuple[str, str], list[Module]] = defaultdict(list)
    for module in checkpoint.modules.values():
        if module.values:
            kinds[module.role.value, _name(module, checkpoint.quant)].append(module)
    everything = [module for modules in kinds.values() for module in modules]
    values, bits = _parameters(everything)
    settings = checkpoint.quant
    architectures = checkpoint.config.get("architectures")
    return {
        "directory": str(checkpoint.root),
        "architecture": architectures[0] if isinstance(architectures, list) and architectures else None,
        "format": format_name(checkpoint),
        "quantization": None
        if settings is None
        else {
            "method": settings.method,
            "algorithm": settings.algorithm,
            "quantizes_activations": settings.quantizes_activations,
            "ignored": len(settings.ignore),
            "kv_cache": settings.kv_cache,
        },
        "layers": number(checkpoint.text, "num_hidden_layers", "n_layer"),
        "shards": len(checkpoint.shards),
        "tensors": len(checkpoint.tensors),
        "parameters": values,
        "bytes_on_disk": checkpoint.size,
        "bits_per_weight": bits,
        "kinds": [
            {
                "role": role,
                "stored_as": name,
                "modules": len(modules),
                "parameters": parameters,
                "bytes": sum(module.nbytes for module in modules),
                "bits_per_weight": bits,
            }
            for (role, name), modules in sorted(kinds.items())
            for parameters, bits in (_parameters(modules),)
        ],
        "roofline": roofline(checkpoint),
    }


def _parameters(modules: list[Module]) -> tuple[int | None, float | None]:
    """How many weights there are, and the bits that each takes; None where a format is not known."""
    if any(module.encoding is encodings.UNKNOWN for module in modules):
        return None, None
    values = sum(module.values for module in modules)
    return values, 8 * sum(module.nbytes for module in modules) / values if values else None
