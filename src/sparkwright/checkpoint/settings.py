"""What config.json and hf_quant_config.json say, read without trusting either."""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase, translate
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Final

from sparkwright.checkpoint.modules import Module, Role

_ABSURD: Final = 1 << 48
_EXPERTS: Final = re.compile(r"(.*\bexperts)\.")
# The methods whose tensors are known here; vLLM serves others too (awq, gptq, quark).
_JUDGED: Final = ("modelopt", "compressed-tensors", "fp8", "fbgemm_fp8", "mxfp4", "mxfp8", "")
# vLLM leaves these unquantized whatever modelopt's list says.
_NEVER_QUANTIZED: Final = ("vision_tower", "vision_model", "vit_large_projector")
# And this one whatever any list says.
_NEVER_QUANTIZED_GATE: Final = "shared_expert_gate"
# Only these model classes of vLLM (Qwen3-VL-MoE and Qwen3-Omni take theirs from Qwen3-MoE) go by the list for a router;
# all others build it unquantized.
QUANTIZES_ROUTERS: Final = ("Qwen3Moe", "Qwen3VLMoe", "Qwen3OmniMoe", "Lfm2Moe", "K2Horizon")


def read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file, or None when the file does not hold one (or is not there)."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def as_object(value: object) -> dict[str, Any]:
    """The value if it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def strings(value: object) -> tuple[str, ...]:
    """The strings in a JSON list."""
    return tuple(one for one in value if isinstance(one, str)) if isinstance(value, list) else ()


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the language model, which multimodal models keep in a part of their own."""
    return dict(config) | as_object(config.get("text_config")) | as_object(config.get("llm_config"))


def number(settings: Mapping[str, Any], *names: str) -> int | None:
    """The first of the settings that is a whole number of a size that a model can have."""
    for name in names:
        value = settings.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) < _ABSURD:
            return value
    return None


@dataclass(frozen=True, kw_only=True)
class Group:
    """What is done to the layers that the targets name."""

    targets: tuple[str, ...]
    quantizes_activations: bool
    static_activations: bool

    @cached_property
    def names(self) -> "_Names":
        """The targets that are names or patterns of names."""
        return _Names(self.targets)

    @cached_property
    def takes_linears(self) -> bool:
        """Whether a target is the class of all Linears."""
        return any(entry.lower() == "linear" for entry in self.targets)


class _Names:
    """Names and patterns (`re:`) by the rule of compressed-tensors."""

    def __init__(self, entries: Iterable[str]) -> None:
        self._names = frozenset(entries)
        self._patterns: list[re.Pattern[str]] = []
        for entry in self._names:
            with suppress(re.error):  # what is no pattern matches nothing
                self._patterns += [re.compile(entry[3:])] if entry.startswith("re:") else []

    def match(self, name: str) -> bool:
        return name in self._names or any(one.match(name) for one in self._patterns)


@dataclass(frozen=True, kw_only=True)
class QuantSettings:
    """How the checkpoint says it is quantized."""

    method: str
    algorithm: str
    ignore: tuple[str, ...]
    groups: tuple[Group, ...]
    quantized_layers: Mapping[str, str] | None
    kv_cache: str | None
    raw: Mapping[str, Any]

    @property
    def is_judged(self) -> bool:
        """Whether it is known here how the method stores weights and scales."""
        return self.method in _JUDGED

    @property
    def decides_by_ignore(self) -> bool:
        """Whether the ignore list is what tells quantized layers from others."""
        return self.method in ("modelopt", "compressed-tensors")

    @property
    def quantizes_activations(self) -> bool:
        """Whether any layer's activations are quantized."""
        return any(one.quantizes_activations for one in self.groups)

    def group_of(self, module: Module) -> Group | None:
        """What is done to a module: a target that is its name goes before one that is its class."""
        if self.method != "compressed-tensors":
            return self.groups[0]
        named = (one for one in self.groups if one.names.match(module.name))
        # The class of a head is no Linear in vLLM.
        by_class = (one for one in self.groups if one.takes_linears and module.role is not Role.HEAD)
        return next(chain(named, by_class), None)

    @cached_property
    def _ignored_names(self) -> _Names:
        return _Names(self.ignore)

    @cached_property
    def _ignored_by_number(self) -> dict[str, list[str]]:
        """Entries by the first number within them, which a name that holds the entry has as well; empty for none."""
        found = defaultdict(list)
        for entry in filter(None, self.ignore):
            found[next((one for one in entry.split(".")[1:-1] if one.isdecimal()), "")].append(entry)
        return found

    @cached_property
    def _ignored_by_pattern(self) -> list[re.Pattern[str]]:
        return [re.compile(translate(one)) for one in self.ignore if set(one) & set("*?[")]

    @cached_property
    def _ignored_experts(self) -> list[str]:
        return [one for one in self.ignore if "experts" in one]

    def ignores(self, module: Module) -> bool:
        """Whether the list excludes a module, by vLLM's own rules for the method."""
        if self.method == "compressed-tensors":
            return self._ignored_names.match(module.name)
        experts = _EXPERTS.match(module.name) if self._ignored_experts else None
        if experts and any(experts[1] in entry for entry in self._ignored_experts):
            return True
        # vLLM looks for every entry as it is written, anywhere in the name; those with wildcards must match all of it.
        numbers = self._ignored_by_number.keys() & {"", *module.name.split(".")}
        if any(entry in module.name for number in numbers for entry in self._ignored_by_number[number]):
            return True
        return any(pattern.match(module.name) for pattern in self._ignored_by_pattern)

    def expects_quantized(self, module: Module) -> bool:
        """Whether vLLM builds this module as quantized."""
        if not module.is_linear or is_plain_gate(module) or self.ignores(module):
            return False
        if self.method == "compressed-tensors":
            return self.group_of(module) is not None
        if self.quantized_layers is not None:
            return self.layer_algorithm(module) is not None
        return not any(one in module.name for one in _NEVER_QUANTIZED)

    def layer_algorithm(self, module: Module) -> str | None:
        """The algorithm of a layer where each has its own (MIXED_PRECISION)."""
        layers, name = self.quantized_layers or {}, module.name
        while name:
            if name in layers:
                return layers[name]
            name = name.rpartition(".")[0]
        return next((layers[entry] for entry in self._layers_by_pattern if fnmatchcase(module.name, entry)), None)

    @cached_property
    def _layers_by_pattern(self) -> list[str]:
        return [one for one in self.quantized_layers or () if set(one) & set("*?[")]


def is_plain_gate(module: Module) -> bool:
    """Whether vLLM's model classes build this one unquantized in any case: the gate of a shared expert."""
    return module.name.rpartition(".")[2] == _NEVER_QUANTIZED_GATE


def quant_settings(root: Path, config: Mapping[str, Any]) -> QuantSettings | None:
    """What vLLM would take: config.json's own, else hf_quant_config.json; None when neither speaks of quantization."""
    raw = config.get("quantization_config") or as_object(config.get("text_config")).get("quantization_config")
    raw = raw or config.get("compression_config")
    other = read_object(root / "hf_quant_config.json")
    if not isinstance(raw, dict) or not raw:
        return parse(other) if other else None
    settings = parse(raw)
    # Older exports keep the algorithm of each layer in the second file only.
    if other and settings.algorithm.upper() == "MIXED_PRECISION" and settings.quantized_layers is None:
        return parse(other)
    return settings


def ignore_key(settings: Mapping[str, Any]) -> str:
    """The key under which the excluded modules are listed; `ignore` where there is no list yet."""
    return next((key for key in ("ignore", "exclude_modules", "modules_to_not_convert") if key in settings), "ignore")


def parse(raw: Mapping[str, Any]) -> QuantSettings:
    """The settings that either of modelopt's two forms, or another tool's form, holds."""
    nested = as_object(raw.get("quantization")) or raw
    method = str(raw.get("quant_method") or ("modelopt" if "quantization" in raw else "")).lower()
    layers = nested.get("quantized_layers")
    cache = nested.get("kv_cache_quant_algo")
    scheme = as_object(nested.get("kv_cache_scheme"))
    if not isinstance(cache, str) and scheme:
        cache = "FP8" if scheme.get("num_bits") == 8 else f"{scheme.get('num_bits')} bits"
    algorithm = str(nested.get("quant_algo") or nested.get("format") or "")
    return QuantSettings(
        method="modelopt" if method.startswith("modelopt") else method,
        algorithm=algorithm,
        ignore=strings(nested.get(ignore_key(nested))),
        groups=_groups(method, algorithm, nested),
        quantized_layers={name: str(as_object(one).get("quant_algo")).upper() for name, one in layers.items()}
        if isinstance(layers, dict)
        else None,
        kv_cache=cache if isinstance(cache, str) and cache else None,
        raw=raw,
    )


def _groups(method: str, algorithm: str, settings: Mapping[str, Any]) -> tuple[Group, ...]:
    """The groups that the config tells; one for all layers where the method knows no others."""
    groups = [
        Group(
            targets=strings(one.get("targets")),
            quantizes_activations=bool(one.get("input_activations")),
            static_activations=as_object(one.get("input_activations")).get("dynamic") is False,
        )
        for one in map(as_object, as_object(settings.get("config_groups")).values())
    ]
    if method == "compressed-tensors":
        return tuple(groups)
    if groups:
        quantizes = any(one.quantizes_activations for one in groups)
        static = any(one.static_activations for one in groups)
    else:
        quantizes = "W4A16" not in algorithm.upper()
        static = algorithm.upper() == "FP8" or settings.get("activation_scheme") == "static"
    return (Group(targets=(), quantizes_activations=quantizes, static_activations=static),)
