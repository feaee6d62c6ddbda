"""config.json as it should be: sizes as in the base model's, and an ignore list that says what the tensors are."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from sparkwright.checkpoint.checkpoint import CONFIG, Checkpoint
from sparkwright.checkpoint.modules import Module
from sparkwright.checkpoint.repair_files import json_bytes
from sparkwright.checkpoint.settings import QuantSettings, as_object, ignore_key, parse, read_object
from sparkwright.checkpoint.structure import check_structure
from sparkwright.errors import ConfigurationError, InputUnreadableError

HF_QUANT: Final = "hf_quant_config.json"

_FIELDS: Final = (
    "num_hidden_layers",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hybrid_override_pattern",
    "max_position_embeddings",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)


def _config_of(base: Path) -> dict[str, Any]:
    config = read_object(base / CONFIG)
    if config is None:
        raise InputUnreadableError(
            f"{base / CONFIG} is not a readable JSON object", remedy="name the base model's folder"
        )
    return config


def restored_config(checkpoint: Checkpoint, base: Path) -> dict[str, Any]:
    """The config with the base's sizes, token ids and entries for each layer; everything else stays.

    Raises:
        ConfigurationError: it does not fit the weights.
    """
    original = _config_of(base)
    restored = dict(checkpoint.config)
    for place in ("", "text_config"):
        source = as_object(original.get(place)) if place else original
        target = dict(as_object(restored.get(place))) if place else restored
        if place and place not in restored:
            continue
        target |= {
            field: value for field, value in source.items() if field in _FIELDS or _for_each_layer(value, source)
        }
        if place:
            restored[place] = target
    remaining = [
        one
        for one in check_structure(replace(checkpoint, config=restored))
        if one.rule.code.startswith("config-") and one.rule.code != "config-unreadable"
    ]
    if remaining:
        raise ConfigurationError(
            "the base model's config does not fit these weights either: "
            + "; ".join(f"{one.rule.code} ({one.detail})" for one in remaining),
            cause="--base names another model",
            remedy="name the model that was quantized",
        )
    return restored


def _for_each_layer(value: object, settings: Mapping[str, Any]) -> bool:
    return isinstance(value, list) and len(value) == settings.get("num_hidden_layers")


def restored_ignore(checkpoint: Checkpoint, config: dict[str, Any], files: dict[str, bytes]) -> dict[str, Any]:
    """The config with an ignore list that says what the tensors are; `hf_quant_config.json` joins `files`."""
    settings = checkpoint.quant
    if settings is None or not settings.decides_by_ignore:
        raise ConfigurationError(
            f"{checkpoint.root} does not say how it is quantized",
            remedy="restore quantization_config in config.json from the tool that quantized the model",
        )
    ignore = _sound_ignore(checkpoint, settings)
    other = read_object(checkpoint.root / HF_QUANT)
    if other is not None and sorted(parse(other).ignore) != sorted(ignore):
        files[HF_QUANT] = json_bytes(_with_ignore(other, ignore))
    raw = config.get("quantization_config")
    if not isinstance(raw, dict) and other is None:
        raise ConfigurationError(
            "quantization_config is not in its usual place",
            cause="config.json keeps it in another part",
            remedy="write its ignore list by hand: " + ", ".join(ignore),
        )
    if not isinstance(raw, dict) or sorted(settings.ignore) == sorted(ignore):
        return config
    return config | {"quantization_config": _with_ignore(raw, ignore)}


def _with_ignore(raw: Mapping[str, Any], ignore: list[str]) -> dict[str, Any]:
    if "quantization" in raw:
        nested = as_object(raw["quantization"])
        return dict(raw) | {"quantization": nested | {ignore_key(nested): ignore}}
    return dict(raw) | {ignore_key(raw): ignore}


def _sound_ignore(checkpoint: Checkpoint, settings: QuantSettings) -> list[str]:
    """Entries that hide no quantized layer, and every layer that is not quantized and not yet covered."""
    modules = [module for module in checkpoint.modules.values() if module.is_linear]
    quantized = [module for module in modules if module.is_quantized]

    def hides(entry: str) -> list[Module]:
        return [module for module in quantized if replace(settings, ignore=(entry,)).ignores(module)]

    kept = [entry for entry in settings.ignore if not hides(entry)]
    sofar = replace(settings, ignore=tuple(kept))
    missing = [module.name for module in modules if not module.is_quantized and not sofar.ignores(module)]
    for name in missing:
        if hidden := hides(name):
            raise ConfigurationError(
                f"ignoring {name} would hide {hidden[0].name}, which is quantized",
                cause="vLLM looks for modelopt's entries anywhere in a layer's name",
                remedy="quantize again with both layers alike",
            )
    return kept + missing
