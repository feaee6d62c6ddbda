"""How fast decoding can be at best: what has to be read for one token, against the memory's bandwidth.

A token of a dense model reads every weight but the embedding, of which it reads one row; of an expert layer only the
experts that are chosen; and the KV cache of the context so far. Nothing can be faster than bytes / bandwidth; what is
left out (activations, launches, the network between Sparks) only makes it slower.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sparkwright.checkpoint.checkpoint import Checkpoint
from sparkwright.checkpoint.modules import Module, Role
from sparkwright.checkpoint.settings import number, strings

BANDWIDTH: Final = 273e9
"""Bytes a second that a Spark's memory gives at best."""

MEMORY: Final = 128e9
"""Bytes of memory of one Spark, which CPU and GPU share."""

SPARKS: Final = (1, 2, 3, 4)
CONTEXTS: Final = (0, 8192, 32768, 131072)
CACHE_BYTES: Final = {"bf16": 2, "fp8": 1}
"""Bytes of one cached value."""

_TOP_K: Final = ("num_experts_per_tok", "num_experts_per_token", "moe_top_k", "moe_k", "top_k_experts")


@dataclass(frozen=True, kw_only=True)
class CacheLayer:
    """The attention layers that keep `values` numbers of each of the last `window` tokens (all, when None)."""

    values: int
    window: int | None


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What one decoded token reads, in bytes, and what the memory has to hold."""

    fixed: int
    expert: float
    experts: int
    chosen: int
    resident: int
    state: int
    cache: tuple[CacheLayer, ...]
    most_context: int | None

    def weights(self, tokens: int = 1) -> float:
        """Weight bytes read by a pass over `tokens` tokens at once: each expert at most once, chosen independently."""
        if not self.experts:
            return float(self.fixed)
        distinct = self.experts * (1 - (1 - self.chosen / self.experts) ** tokens)
        return self.fixed + self.expert * distinct

    def cache_bytes(self, context: int, *, value_bytes: int) -> int:
        """The KV cache of one sequence of `context` tokens."""
        return sum(
            layer.values * value_bytes * (context if layer.window is None else min(context, layer.window))
            for layer in self.cache
        )

    def tokens_per_second(self, context: int, *, sparks: int = 1, value_bytes: int, streams: int = 1) -> float | None:
        """The bound for `streams` sequences decoded together over `sparks` machines; None when nothing is read."""
        own = self.state + self.cache_bytes(context, value_bytes=value_bytes)
        total = self.weights(streams) + streams * own
        return streams * sparks * BANDWIDTH / total if total > 0 else None

    def longest_context(self, *, sparks: int, usable: float, value_bytes: int) -> int | None:
        """Tokens of KV cache, all sequences together, that fit beside the weights; None when the weights do not fit.

        `usable` is what one machine gives to weights and cache.
        """
        left = sparks * usable - self.resident
        if left < 0:
            return None
        low, high = 0, self.most_context or 1 << 24
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (
                (middle, high) if self.cache_bytes(middle, value_bytes=value_bytes) <= left else (low, middle - 1)
            )
        return low


def costs(checkpoint: Checkpoint) -> Costs:
    """What a token costs by the shapes of the tensors; config.json only says how many experts are chosen."""
    fixed = 0
    by_layer: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    stacked = 0
    routed = 0
    resident = 0
    has_head = any(module.role is Role.HEAD for module in checkpoint.modules.values())
    layers = number(checkpoint.text, "num_hidden_layers", "n_layer")
    for module in checkpoint.modules.values():
        resident += module.nbytes
        if module.role is Role.EXPERT and not _is_extra(module, layers):
            routed += module.nbytes
            stacked = max(stacked, module.stacked_experts)
            if module.expert is not None:
                by_layer[module.name.split(".experts.")[0]][module.expert] += module.nbytes
        elif module.role is Role.EMBEDDING:
            # Without a head of its own the model multiplies with the embedding; else it looks up one row.
            tied = not has_head and module.name.endswith(("embed_tokens", "wte"))
            fixed += module.nbytes if tied else _row(module)
        elif module.role not in (Role.MTP, Role.VISION) and not _is_extra(module, layers):
            fixed += module.nbytes
    experts = max((len(one) for one in by_layer.values()), default=stacked)
    chosen = number(checkpoint.text, *_TOP_K) or experts
    return Costs(
        fixed=fixed,
        expert=routed / experts if experts else 0.0,
        experts=experts,
        chosen=max(0, min(chosen, experts)),
        resident=resident,
        state=_recurrent_state(checkpoint),
        cache=_cache(checkpoint, layers),
        most_context=number(checkpoint.text, "max_position_embeddings"),
    )


def _row(module: Module) -> int:
    return module.nbytes // module.shape[0] if len(module.shape) > 1 and module.shape[0] else 0


def _is_extra(module: Module, layers: int | None) -> bool:
    """Layers beyond the declared ones predict several tokens ahead and take no part in plain decoding."""
    return layers is not None and module.layer is not None and module.layer >= layers


def _cache(checkpoint: Checkpoint, layers: int | None) -> tuple[CacheLayer, ...]:
    """What each attention layer keeps of a token: the outputs of its key and value projections."""
    kinds = strings(checkpoint.text.get("layer_types"))
    window = number(checkpoint.text, "sliding_window")
    everywhere = not kinds and checkpoint.text.get("use_sliding_window", True) is True
    found: list[CacheLayer] = []
    for module in checkpoint.modules.values():
        if module.role is not Role.ATTENTION or not module.shape or module.layer is None or _is_extra(module, layers):
            continue
        parent, _, last = module.name.rpartition(".")
        values = 0
        if last == "k_proj":
            value = checkpoint.modules.get(f"{parent}.v_proj")
            values = module.shape[0] + (value.shape[0] if value is not None and value.shape else module.shape[0])
        elif last == "kv_a_proj_with_mqa":
            values = module.shape[0]
        if not values:
            continue
        slides = everywhere or (module.layer < len(kinds) and kinds[module.layer] == "sliding_attention")
        found.append(CacheLayer(values=values, window=window if slides else None))
    return tuple(found)


def _recurrent_state(checkpoint: Checkpoint) -> int:
    """Bytes of linear-attention state that a token reads and writes, kept in float32."""
    settings = checkpoint.text
    heads = number(settings, "linear_num_value_heads") or 0
    key = number(settings, "linear_key_head_dim") or 0
    value = number(settings, "linear_value_head_dim") or 0
    layers = {
        module.layer
        for module in checkpoint.modules.values()
        if ".linear_attn." in module.name and module.role is not Role.MTP
    }
    return 2 * 4 * heads * key * value * len(layers)


def roofline(
    checkpoint: Checkpoint,
    *,
    contexts: Sequence[int] = CONTEXTS,
    memory_share: float = 0.75,
    reserve: float = 4e9,
    streams: int = 1,
) -> dict[str, Any]:
    """The bounds as plain data: bytes per token, tok/s for one to four Sparks, and the context that fits.

    `memory_share` is what vLLM may take of a machine (GPU_MEMORY_UTIL), `reserve` the part of it that is neither
    weights nor cache.
    """
    found = costs(checkpoint)
    usable = MEMORY * memory_share - reserve
    contexts = [one for one in contexts if found.most_context is None or one <= found.most_context]
    return {
        "bytes_per_token": {
            "weights": round(found.weights()),
            "state": found.state,
            "kv_per_context_token": {
                name: found.cache_bytes(1, value_bytes=size) for name, size in CACHE_BYTES.items()
            },
        },
        "experts": {"number": found.experts, "chosen": found.chosen},
        "resident_bytes": found.resident,
        "assumptions": {
            "bandwidth_bytes_per_second": BANDWIDTH,
            "memory_bytes": MEMORY,
            "memory_share": memory_share,
            "reserve_bytes": reserve,
            "streams": streams,
        },
        "tokens_per_second": [
            {
                "sparks": sparks,
                "context": context,
                "kv_cache": name,
                "bound": found.tokens_per_second(context, sparks=sparks, value_bytes=size, streams=streams),
            }
            for sparks in SPARKS
            for context in contexts
            for name, size in CACHE_BYTES.items()
        ],
        "fits": [
            {
                "sparks": sparks,
                "kv_cache": name,
                "context": found.longest_context(sparks=sparks, usable=usable, value_bytes=size),
                "most_context": found.most_context,
            }
            for sparks in SPARKS
            for name, size in CACHE_BYTES.items()
        ],
    }
