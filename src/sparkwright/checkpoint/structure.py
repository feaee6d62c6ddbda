"""What can be told to be wrong from headers and JSON alone: well within a second for a dense model of any size."""

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Final

from sparkwright.checkpoint import encodings
from sparkwright.checkpoint.checkpoint import MISTRAL_CONFIG, Checkpoint
from sparkwright.checkpoint.completeness import check_completeness
from sparkwright.checkpoint.encodings import Encoding
from sparkwright.checkpoint.findings import Finding, finding
from sparkwright.checkpoint.modules import Module, Role, orphans
from sparkwright.checkpoint.settings import QUANTIZES_ROUTERS, QuantSettings, is_plain_gate, parse, read_object, strings

# Only words that no model repeats: vision towers do (`vision_model.vision_model`).
_DOUBLED: Final = re.compile(r"(?:^|\.)(model|layers|language_model|transformer|lm_head|self_attn|mlp)\.\1\.")
_TOKENIZERS: Final = (
    "tokenizer.json",
    "tokenizer.model",
    "tekken.json",
    "vocab.json",
    "spiece.model",
    "tiktoken.model",
    "vocab.txt",
)
# What vLLM 0.33.0 knows of modelopt, and how each algorithm stores a weight.
_MODELOPT_ALGORITHMS: Final[dict[str, tuple[Encoding, ...]]] = {
    "NVFP4": (encodings.MODELOPT_NVFP4,),
    "W4A16_NVFP4": (encodings.MODELOPT_NVFP4,),
    "FP8": (encodings.FP8,),
    "FP8_PER_CHANNEL_PER_TOKEN": (encodings.FP8,),
    "FP8_PB_WO": (encodings.FP8, encodings.BLOCK_FP8),
    "MXFP8": (encodings.MXFP8,),
}
_MIXED: Final = "MIXED_PRECISION"


def check_structure(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Every finding that needs no tensor's values."""
    yield from checkpoint.file_findings
    if doubled := [one for name, one in checkpoint.modules.items() if _DOUBLED.search(f"{name}.")]:
        yield finding("doubled-prefix", [tensor.name for one in doubled for tensor in one.parts.values()])
    yield from _mistral(checkpoint)
    yield from _companions(checkpoint)
    if checkpoint.is_mistral_only:
        return
    yield from check_completeness(checkpoint)
    if checkpoint.quant is None or checkpoint.quant.is_judged:
        yield from _quantization(checkpoint)
        yield from _scales(checkpoint)
    else:
        yield finding("quant-method-not-judged", [], f"quant_method is {checkpoint.quant.method!r}")


def _mistral(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Files that vLLM would read instead of those that are judged."""
    if (checkpoint.root / MISTRAL_CONFIG).is_file():
        if checkpoint.consolidated:
            judged = "no other files were" if checkpoint.is_mistral_only else "only the other files were"
            yield finding("mistral-format", checkpoint.consolidated, f"{judged} judged")
    elif not {shard.path.name for shard in checkpoint.shards} >= set(checkpoint.consolidated):
        yield finding("consolidated-stray", checkpoint.consolidated)


def _quantization(checkpoint: Checkpoint) -> Iterator[Finding]:
    quantized = [one for one in checkpoint.modules.values() if one.is_quantized]
    settings = checkpoint.quant
    if settings is None:
        if quantized:
            yield finding("quant-config-missing", _weights(quantized))
        return
    foreign = [one for one in quantized if one.encoding and one.encoding.families and not _fits(one, settings)]
    nothing = not quantized and settings.decides_by_ignore and not checkpoint.lacks_headers
    if foreign or nothing:
        names = sorted({one.encoding.name for one in foreign if one.encoding}) or ["no quantized tensor"]
        said = f"{settings.method or 'not set'!r}" + (f" with {settings.algorithm}" if settings.algorithm else "")
        detail = f"quant_method is {said}, the files hold {', '.join(names)}"
        yield finding("quant-method-disagrees", _weights(foreign), detail)
        return
    yield from _second_config(checkpoint)
    if not settings.decides_by_ignore:
        return
    if settings.method == "modelopt" and settings.algorithm.upper() not in (*_MODELOPT_ALGORITHMS, _MIXED):
        yield finding("quant-algo-unsupported", [], f"quant_algo is {settings.algorithm or 'not set'}")
    if gates := [one for one in quantized if is_plain_gate(one)]:
        yield finding("gate-quantized", _weights(gates))
    linears = [one for one in checkpoint.modules.values() if one.is_linear]
    mixed = [one for group in _fused(checkpoint).values() if len({m.encoding for m in group}) > 1 for one in group]
    if mixed:
        yield finding("fused-partly-quantized", _weights(mixed))
    apart = {one.name for one in mixed} | (set() if _quantizes_routers(checkpoint) else _routers(checkpoint))
    exposed = [
        one for one in linears if not one.is_quantized and one.name not in apart and settings.expects_quantized(one)
    ]
    listless = not settings.ignore and settings.quantized_layers is None
    if (
        listless and not exposed
    ):  # compressed-tensors never quantizes the head, so vLLM survives, but other tools do not
        exposed = [one for one in linears if one.role is Role.HEAD and not one.is_quantized]
    if exposed:
        yield finding("ignore-empty" if listless else "ignore-lacks", _weights(exposed))
    named = {one.name for one in (*mixed, *gates)}
    if shadowed := [one for one in quantized if one.name not in named and settings.ignores(one)]:
        yield finding("ignored-but-quantized", _weights(shadowed))


def _quantizes_routers(checkpoint: Checkpoint) -> bool:
    return any(one.startswith(QUANTIZES_ROUTERS) for one in strings(checkpoint.config.get("architectures")))


def _routers(checkpoint: Checkpoint) -> set[str]:
    return {name for name, one in checkpoint.modules.items() if one.role is Role.ROUTER}


def _fits(module: Module, settings: QuantSettings) -> bool:
    """Whether a module is stored as the config's method, and the algorithm where it is a known one, stores weights."""
    if module.encoding is None or settings.method not in module.encoding.families:
        return False
    if settings.method != "modelopt":
        return True
    algorithm = settings.layer_algorithm(module) if settings.quantized_layers is not None else settings.algorithm
    stored = _MODELOPT_ALGORITHMS.get((algorithm or "").upper())
    return stored is None or module.encoding in stored


def _weights(modules: list[Module]) -> list[str]:
    return [module.weight.name for module in modules if module.weight is not None]


def _fused(checkpoint: Checkpoint) -> dict[str, list[Module]]:
    groups: dict[str, list[Module]] = defaultdict(list)
    for module in checkpoint.modules.values():
        if module.fused_group is not None and module.weight is not None:
            groups[module.fused_group].append(module)
    return groups


def fused_groups(checkpoint: Checkpoint) -> list[list[Module]]:
    """The modules that vLLM makes one layer of, where there are several."""
    return [group for group in _fused(checkpoint).values() if len(group) > 1]


def _second_config(checkpoint: Checkpoint) -> Iterator[Finding]:
    other = read_object(checkpoint.root / "hf_quant_config.json")
    if other is None or checkpoint.quant is None or checkpoint.quant.raw == other:
        return
    first, second = checkpoint.quant, parse(other)
    differences = [
        what
        for what, one, two in (
            ("algorithm", first.algorithm.upper(), second.algorithm.upper()),
            ("exclusions", sorted(first.ignore), sorted(second.ignore)),
        )
        if one != two
    ]
    if differences and first.method == second.method:
        yield finding("quant-configs-differ", differences)


def needs_input_scale(checkpoint: Checkpoint, module: Module) -> bool:
    """Whether vLLM will look for a static input scale of this module."""
    settings = checkpoint.quant
    if settings is None or module.encoding is None or module.encoding.input_scale is None:
        return False
    if settings.quantized_layers is not None:
        return settings.layer_algorithm(module) in ("NVFP4", "FP8")
    group = settings.group_of(module)
    if group is None:
        return False
    return group.static_activations if module.encoding.bits == 8 else group.quantizes_activations


def _scales(checkpoint: Checkpoint) -> Iterator[Finding]:
    missing: list[str] = []
    unmeasured: list[str] = []
    misshapen: list[str] = []
    for module in checkpoint.modules.values():
        if module.encoding is None or not module.is_quantized:
            continue
        needed = (module.encoding.block_scale, module.encoding.global_scale)
        missing += [f"{module.name}.{part}" for part in needed if part is not None and part not in module.parts]
        if needs_input_scale(checkpoint, module) and module.encoding.input_scale not in module.parts:
            unmeasured.append(f"{module.name}.{module.encoding.input_scale}")
        misshapen += _misshapen(module)
    if misshapen:
        yield finding("scale-shape", misshapen)
    if checkpoint.lacks_headers:
        return
    if missing:
        yield finding("scale-missing", missing)
    if unmeasured:
        yield finding("input-scale-missing", unmeasured)
    if extra := [tensor.name for module in checkpoint.modules.values() for tensor in orphans(module)]:
        yield finding("scale-extra", extra)


def _misshapen(module: Module) -> Iterator[str]:
    encoding = module.encoding
    if encoding is None or encoding.block_scale is None:
        return
    scale = module.parts.get(encoding.block_scale)
    if scale is not None:
        # Stacked experts may be stored transposed, so that their shape tells nothing.
        known = encoding.block > 0 and len(module.shape) == 2
        if (known and scale.shape != block_grid(module)) or scale.dtype not in encoding.block_scale_dtypes:
            yield scale.name
    for part in (encoding.global_scale, encoding.input_scale):
        tensor = module.parts.get(part) if part else None
        if tensor is not None and (
            tensor.dtype not in encodings.FLOATS or tensor.elements not in (1, module.stacked_experts)
        ):
            yield tensor.name


def block_grid(module: Module) -> tuple[int, int]:
    """Rows and columns of the block scales that a weight matrix needs."""
    encoding = module.encoding
    if encoding is None or not encoding.block or len(module.shape) != 2:
        raise ValueError(f"{module.name} has no grid of block scales")
    return -(-module.shape[0] // encoding.block_rows), -(-module.shape[1] // encoding.block)


def _companions(checkpoint: Checkpoint) -> Iterator[Finding]:
    root = checkpoint.root
    if not any((root / name).is_file() for name in _TOKENIZERS):
        yield finding("tokenizer-missing")
    files = ("chat_template.jinja", "chat_template.json", "tekken.json")
    template = (read_object(root / "tokenizer_config.json") or {}).get("chat_template")
    if not template and not any((root / name).is_file() for name in files):
        yield finding("chat-template-missing")
