"""What a model keeps of the tokens it has seen: the KV cache of its attention, and recurrent states.

The shapes of the tensors say it, wherever they can; config.json where several projections are one tensor. What neither
says is unknown, and said to be: a cache of 0 bytes would be a wrong number.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sparkwright.checkpoint import encodings
from sparkwright.checkpoint.checkpoint import Checkpoint
from sparkwright.checkpoint.modules import Module, Role
from sparkwright.checkpoint.settings import as_object, number, strings

# A key's projection and the value's beside it.
_KEYS: Final = {"k_proj": "v_proj", "wk": "wv"}
# Projections to what latent attention keeps instead of keys and values.
_LATENTS: Final = ("kv_a_proj_with_mqa", "wkv_a_with_mqa", "wkv_a")
# Query, key and value in one tensor.
_FUSED: Final = ("qkv_proj", "query_key_value", "qkv", "Wqkv", "wqkv", "c_attn", "W_pack")
_ATTENTION: Final = re.compile("attn|attention")

_KV_HEADS: Final = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num", "num_attention_groups")
_HEADS: Final = ("num_attention_heads", "n_head", "n_heads")
_STATE_WIDTHS: Final = ("ssm_state_size", "mamba_d_state", "state_size", "d_state", "linear_key_head_dim")
_STATE_BYTES: Final = {"float32": 4, "bfloat16": 2, "float16": 2}
# One layer in so many attends to everything, where config.json leaves it to transformers' defaults; 0: none does.
_FULL_EVERY: Final = {
    "cohere2": 4,
    "gemma2": 2,
    "gemma3": 6,
    "gemma3_text": 6,
    "gpt_oss": 2,
    "mistral": 0,
    "mixtral": 0,
    "phi3": 0,
    "starcoder2": 0,
}


@dataclass(frozen=True, kw_only=True)
class CacheLayer:
    """An attention layer that keeps `values` numbers of each of the last `window` tokens (all, when None).

    Tensor parallelism divides them by `heads`: each machine has one at least, and all have the same one when there are
    more machines than heads.
    """

    values: int
    heads: int
    window: int | None


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What a sequence leaves in memory; None where it is unknown. `notes` say what was assumed, or is unknown."""

    layers: tuple[CacheLayer, ...] | None
    state: int | None
    notes: tuple[str, ...]


def kept(checkpoint: Checkpoint) -> Kept:
    """The cache of every attention layer, and the bytes of all recurrent states of a sequence."""
    settings = checkpoint.text
    notes: list[str] = []
    layers: list[CacheLayer] = []
    unknown: list[str] = []
    states: list[int | None] = []
    window_of = _windows(settings, notes)
    for name, block in _blocks(checkpoint).items():
        whole = checkpoint.modules.get(name)
        if whole is not None and "A_log" in whole.parts:
            states.append(_state(settings, whole, block))
        elif any(last in block for last in (*_KEYS, *_LATENTS, *_FUSED)):
            layer = _attention(settings, name, block, window_of)
            layers += [layer] if layer is not None else []
            unknown += [name] if layer is None else []
        elif _ATTENTION.search(name.rpartition(".")[2]) and any(one.is_linear for one in block.values()):
            unknown.append(name)
    if unknown:
        notes.append(
            f"KV cache: unknown, as neither tensors nor config.json tell what {len(unknown)} attention layers keep "
            f"(for instance {unknown[0]})"
        )
    elif not layers and not states:
        notes.append("KV cache: unknown, as no attention was recognized")
    if None in states:
        notes.append("recurrent state: unknown and not counted, as config.json does not tell its width")
    if any(layer.heads == 0 for layer in layers):
        notes.append("KV cache: not divided between Sparks, as config.json does not tell the width of a head")
    return Kept(
        layers=tuple(layers) if not unknown and (layers or states) else None,
        state=None if None in states else sum(one or 0 for one in states),
        notes=tuple(notes),
    )


def takes_part(module: Module, layers: int | None) -> bool:
    """Whether plain decoding uses a module: layers beyond the declared ones predict several tokens ahead."""
    if module.role in (Role.MTP, Role.VISION):
        return False
    return layers is None or module.layer is None or module.layer < layers


def layer_count(settings: Mapping[str, Any]) -> int | None:
    """How many decoder layers config.json declares."""
    return number(settings, "num_hidden_layers", "n_layer", "n_layers", "num_layers")


def _blocks(checkpoint: Checkpoint) -> dict[str, dict[str, Module]]:
    """What lies directly under each module of the decoder's layers, by the last word of its name."""
    count = layer_count(checkpoint.text)
    shared = number(checkpoint.text, "num_kv_shared_layers") or 0  # the last ones use the cache of others
    own = None if count is None else count - shared
    found: dict[str, dict[str, Module]] = defaultdict(dict)
    for module in checkpoint.modules.values():
        if module.layer is not None and module.expert is None and takes_part(module, own):
            parent, _, last = module.name.rpartition(".")
            if "encoder" not in parent.split("."):
                found[parent][last] = module
    return found


def _attention(
    settings: Mapping[str, Any], name: str, block: Mapping[str, Module], window_of: "_Windows"
) -> CacheLayer | None:
    """What a block keeps of a token; None where its shapes and the config leave it open."""
    if latent := next((block[last] for last in _LATENTS if last in block), None):
        return CacheLayer(values=latent.shape[0], heads=1, window=None) if _rows(latent) else None
    key = next((block[last] for last in _KEYS if last in block), None)
    some = key or next(iter(block.values()))
    window, is_full = window_of(some.layer or 0)
    width = _head_width(settings, is_full=is_full)
    if name.endswith(".indexer"):  # sparse attention's own keys: one head, and no values
        return CacheLayer(values=_rows(key), heads=1, window=None) if key and _rows(key) else None
    keys = _rows(key) if key else 0
    if not keys:
        queries = number(settings, *_HEADS)
        heads = number(settings, *_KV_HEADS) or queries
        if not heads or not width or not queries:
            return None
        fused = next((block[last].shape for last in _FUSED if last in block and _rows(block[last])), None)
        if fused is not None and (queries + 2 * heads) * width not in fused:  # GPT-2's inputs come first
            return None
        return CacheLayer(values=2 * heads * width, heads=heads, window=window)
    # Without a projection of its own the value is the key once more, and vLLM keeps both.
    beside = block.get(_KEYS[some.name.rpartition(".")[2]])
    values = (_rows(beside) if beside else 0) or keys
    return CacheLayer(values=keys + values, heads=keys // width if width else 0, window=window)


def _rows(module: Module) -> int:
    """The outputs of a projection; 0 when the way it is stored is not known."""
    return module.shape[0] if module.encoding is not encodings.UNKNOWN and len(module.shape) == 2 else 0


def _head_width(settings: Mapping[str, Any], *, is_full: bool) -> int | None:
    """The width of a head; of the layers that attend to everything, where they have their own."""
    names = ("global_head_dim", "head_dim") if is_full else ("head_dim",)
    if found := number(settings, *(name for name in names if settings.get(name))):
        return found
    hidden, heads = number(settings, "hidden_size", "n_embd", "dim"), number(settings, *_HEADS)
    return hidden // heads if hidden and heads else None


_Windows = Callable[[int], tuple[int | None, bool]]


def _windows(settings: Mapping[str, Any], notes: list[str]) -> _Windows:
    """The window of a layer by its number, and whether it attends to everything."""
    window = number(settings, "sliding_window") or number(settings, "attention_chunk_size")
    # The types with `max_window_layers` have a window only when they say so.
    if not window or settings.get("use_sliding_window", "max_window_layers" not in settings) is False:
        window = None
    kinds = list(_kinds(settings)) if window else list(strings(settings.get("layer_types")))
    if window and not kinds:
        notes.append(
            f"KV cache: every layer is counted in full, as config.json names a window of {window:,} tokens but not the "
            "layers that have it"
        )

    def of(layer: int) -> tuple[int | None, bool]:
        slides = layer < len(kinds) and ("sliding" in kinds[layer] or "chunked" in kinds[layer])
        return (window if slides else None), not slides

    return of


def _kinds(settings: Mapping[str, Any]) -> Iterator[str]:
    """The kind of each layer of a model with a window; none where config.json and its type leave it open."""
    named = strings(settings.get("layer_types"))
    if named:
        yield from named
        return
    pattern = settings.get("sliding_window_pattern", _FULL_EVERY.get(str(settings.get("model_type"))))
    first = number(settings, "max_window_layers")
    for layer in range(layer_count(settings) or 0):
        if isinstance(pattern, str) and pattern:
            slides = pattern[layer % len(pattern)] == "L"
        elif isinstance(pattern, int):
            slides = pattern == 0 or (layer + 1) % pattern != 0
        elif first is not None:
            slides = layer >= first
        else:
            return
        yield "sliding_attention" if slides else "full_attention"


def _state(settings: Mapping[str, Any], whole: Module, block: Mapping[str, Module]) -> int | None:
    """Bytes of a recurrent layer's state: so many numbers for each input of its output projection."""
    out = block.get("out_proj") or block.get("o_proj")
    if out is None or not _rows(out):
        return None
    inputs = out.shape[-1]
    decay = whole.parts["A_log"].shape
    width = number(settings, *_STATE_WIDTHS) or number(as_object(settings.get("linear_attn_config")), "head_dim")
    if len(decay) == 2 and decay[0] == inputs:  # the first Mamba: a decay for every number of the state
        width = decay[1]
    dtype = settings.get("mamba_ssm_cache_dtype") or settings.get("mamba_ssm_dtype") or "float32"
    return inputs * width * _STATE_BYTES.get(str(dtype), 4) if width else None
