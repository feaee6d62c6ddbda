"""What MODEL may be, and how long a context the model itself allows."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from sparkwright.errors import ConfigurationError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?(:[\w.-]+)?")
_ADDRESS = re.compile(r"[a-z][a-z0-9+]*://\S+")
_LIMITS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "model_max_length",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
)  # the names under which model configurations give it, as vLLM looks for them


def check(model: str) -> None:
    """Refuse what can be no model.

    Raises:
        ConfigurationError: no model, a folder that is missing or has no config.json, or text that is no hub id.
    """
    if not model.strip():
        raise ConfigurationError(
            "MODEL is not set",
            remedy="name a model: -e MODEL=nvidia/Qwen3-Next-80B-A3B-Instruct-NVFP4, or a recipe: -e RECIPE=NAME",
        )
    path = Path(model)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ConfigurationError(
                f"MODEL={model} is a folder without config.json",
                cause="it is the folder above the checkpoint, or the download was interrupted",
                remedy="name the folder that holds config.json and the weights",
            )
        return
    if model.startswith(("/", ".", "~")) and not path.is_file():
        raise ConfigurationError(
            f"MODEL={model} does not exist in this container",
            cause="it was not mounted, or is mounted elsewhere",
            remedy=f"mount it: -v {model}:{model}:ro",
        )
    if not path.is_file() and _HUB_ID.fullmatch(model) is None and _ADDRESS.fullmatch(model) is None:
        raise ConfigurationError(
            f"MODEL={model!r} is neither a hub id nor a folder",
            cause="a space or another character that does not belong there",
            remedy="a hub id has the form owner/name",
        )


def _config(model: str, environment: Mapping[str, str]) -> Path | None:
    """The model's config.json: in its folder, or in the hub's cache when it was downloaded before."""
    path = Path(model)
    if path.is_dir():
        return path / "config.json"
    cache = environment.get("XDG_CACHE_HOME") or f"{environment.get('HOME') or ''}/.cache"
    hub = environment.get("HF_HUB_CACHE") or f"{environment.get('HF_HOME') or f'{cache}/huggingface'}/hub"
    folder = Path(hub) / f"models--{model.replace('/', '--')}"
    try:
        commit = (folder / "refs" / "main").read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return folder / "snapshots" / commit / "config.json"


def limit(model: str, environment: Mapping[str, str]) -> int | None:
    """The model's own context limit, or None where it cannot be read or does not say."""
    path = _config(model, environment)
    try:
        config = json.loads(path.read_text(encoding="utf-8")) if path else None
    except (OSError, ValueError):
        return None
    if not isinstance(config, dict):
        return None
    text = config.get("text_config")
    for part in (config, text if isinstance(text, dict) else {}):
        found = [value for name in _LIMITS if isinstance(value := part.get(name), int) and value > 0]
        if found:
            return int(min(found) * _stretch(part))
    return None


def _stretch(config: Mapping[str, object]) -> float:
    """The factor by which RoPE scaling lengthens the limit; only where it is not yet in the limit itself."""
    scaling = config.get("rope_scaling") or config.get("rope_parameters")
    if not isinstance(scaling, dict) or not isinstance(factor := scaling.get("factor"), int | float):
        return 1.0
    kind = scaling.get("rope_type") or scaling.get("type")
    return max(1.0, float(factor)) if kind in ("yarn", "linear", "dynamic") else 1.0
