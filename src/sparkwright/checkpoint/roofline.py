"""How fast decoding can be at best: what has to be read for one token, against the memory's bandwidth.

A token of a dense model reads every weight but the embedding, of which it reads one row; of an expert layer only the
experts that are chosen; and the KV cache of the context so far. Nothing can be faster than bytes / bandwidth; what is
left out (activations, launches, the network between Sparks) only makes it slower. Several Sparks divide the weights
and the heads of the cache, as tensor parallelism does.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from sparkwright.checkpoint.cache import CacheLayer, kept, layer_count, takes_part
from sparkwright.checkpoint.checkpoint import Checkpoint
from sparkwright.checkpoint.modules import Module, Role
from sparkwright.checkpoint.settings import number
from sparkwright.errors import UsageError

BANDWIDTH: Final = 273e9
"""Bytes a second that a Spark's memory gives at best."""

MEMORY: Final = 128e9
"""Bytes of memory of one Spark, which CPU and GPU share."""

SPARKS: Final = (1, 2, 3, 4)
CONTEXTS: Final = (0, 8192, 32768, 131072)
CACHE_BYTES: Final = {"bf16": 2, "fp8": 1}
"""Bytes of one cached value."""

_EXPERTS: Final = ("num_experts", "moe_num_experts", "n_routed_experts", "num_local_experts")
_TOP_K: Final = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "top_k_experts",
    "moe_topk",
    "moe_top_k",
    "moe_k",
    "top_k",
)
_LONGEST: Final = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length")
_ENDLESS: Final = 1 << 40


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What one decoded token reads, in bytes, and what the memory has to hold; None where it is unknown.

    `state` is what a sequence's recurrent layers keep; a token reads and writes it.
    """

    fixed: int
    expert: float
    experts: int
    chosen: int
    resident: int
    state: int | None
    cache: tuple[CacheLayer, ...] | None
    most_context: int | None
    notes: tuple[str, ...]

    def weights(self, tokens: int = 1) -> float:
        """Weight bytes read by a pass over `tokens` tokens at once: each expert at most once, chosen independently."""
        if not self.experts:
            return float(self.fixed)
        distinct = self.experts * (1 - (1 - self.chosen / self.experts) ** tokens)
        return self.fixed + self.expert * distinct

    def cache_bytes(self, context: int, *, value_bytes: int, sparks: int = 1) -> float | None:
        """What one machine holds of the KV cache of a sequence of `context` tokens."""
        if self.cache is None:
            return None if context else 0
        return sum(
            layer.values
            * value_bytes
            * (context if layer.window is None else min(context, layer.window))
            / max(1, min(sparks, layer.heads))
            for layer in self.cache
        )

    def tokens_per_second(self, context: int, *, sparks: int = 1, value_bytes: int, streams: int = 1) -> float | None:
        """The bound for `streams` sequences decoded together over `sparks` machines; None when it is unknown."""
        cache = self.cache_bytes(context, value_bytes=value_bytes, sparks=sparks)
        if cache is None:
            return None
        shared = self.weights(streams) + streams * 2 * (self.state or 0)
        total = shared / sparks + streams * cache
        return streams * BANDWIDTH / total if total > 0 else None

    def weights_fit(self, *, sparks: int, usable: float) -> bool:
        """Whether `sparks` machines hold the weights, when each gives `usable` bytes to weights and cache."""
        return self.resident <= sparks * usable

    def longest_context(self, *, sparks: int, usable: float, value_bytes: int) -> int | None:
        """Tokens of KV cache, all sequences together, that fit beside the weights; None when none do, or unknown.

        `usable` is what one machine gives to weights and cache.
        """
        if self.cache is None or not self.weights_fit(sparks=sparks, usable=usable):
            return None
        left = usable - (self.resident + (self.state or 0)) / sparks
        low, high = 0, self.most_context or _ENDLESS
        while low < high:
            middle = (low + high + 1) // 2
            held = self.cache_bytes(middle, value_bytes=value_bytes, sparks=sparks)
            low, high = (middle, high) if held is not None and held <= left else (low, middle - 1)
        return None if self.most_context is None and low == _ENDLESS else low


def costs(checkpoint: Checkpoint) -> Costs:
    """What a token costs by the shapes of the tensors; config.json only says how many experts are chosen."""
    fixed = 0
    by_layer: dict[str, set[int]] = defaultdict(set)
    stacked = 0
    routed = 0
    resident = 0
    has_head = any(module.role is Role.HEAD for module in checkpoint.modules.values())
    layers = layer_count(checkpoint.text)
    for module in checkpoint.modules.values():
        resident += module.nbytes
        if not takes_part(module, layers):
            continue
        if module.role is Role.EXPERT:
            routed += module.nbytes
            stacked = max(stacked, module.stacked_experts)
            if module.expert is not None:
                by_layer[module.name.split(".experts.")[0]].add(module.expert)
        elif module.role is Role.EMBEDDING:
            # Without a head of its own the model multiplies with the embedding; else it looks up one row.
            tied = not has_head and module.name.endswith(("embed_tokens", "wte"))
            fixed += module.nbytes if tied else _row(module)
        else:
            fixed += module.nbytes
    experts = max((len(one) for one in by_layer.values()), default=stacked)
    if routed and not experts:
        experts = number(checkpoint.text, *_EXPERTS) or 0
    chosen = number(checkpoint.text, *_TOP_K) if experts else None
    memory = kept(checkpoint)
    notes = memory.notes
    if routed and chosen is None:
        notes += ("experts: all are counted, as config.json does not tell how many of how many a token chooses",)
    if not checkpoint.config:
        notes += ("windows and the longest context: unknown, as there is no config.json that can be read",)
    return Costs(
        fixed=fixed if experts else fixed + routed,
        expert=routed / experts if experts else 0.0,
        experts=experts,
        chosen=experts if chosen is None else max(0, min(chosen, experts)),
        resident=resident,
        state=memory.state,
        cache=memory.layers,
        most_context=number(checkpoint.text, *_LONGEST),
        notes=notes,
    )


def _row(module: Module) -> int:
    return module.nbytes // module.shape[0] if len(module.shape) > 1 and module.shape[0] else 0


def roofline(
    checkpoint: Checkpoint,
    *,
    contexts: Sequence[int] | None = None,
    memory_share: float = 0.75,
    reserve: float = 4e9,
    streams: int = 1,
) -> dict[str, Any]:
    """The bounds as plain data: bytes per token, tok/s for one to four Sparks, and the context that fits.

    None stands for what neither tensors nor config.json tell; `notes` say why. Without `contexts`, those of CONTEXTS
    that the model has. `memory_share` is what vLLM may take of a machine (GPU_MEMORY_UTIL), `reserve` the part of it
    that is neither weights nor cache.

    Raises:
        UsageError: a context is longer than the model's longest.
    """
    found = costs(checkpoint)
    usable = MEMORY * memory_share - reserve
    longest = found.most_context
    if contexts is None:
        contexts = [one for one in CONTEXTS if longest is None or one <= longest]
    elif longest is not None and max(contexts, default=0) > longest:
        raise UsageError(
            f"a context of {max(contexts):,} tokens is more than the model's {longest:,}",
            cause="config.json says how long a context the model has",
            remedy=f"name contexts of at most {longest}",
        )
    return {
        "bytes_per_token": {
            "weights": round(found.weights()),
            "state": None if found.state is None else 2 * found.state,
            "kv_per_context_token": _cached(found, 1),
            "kv_beyond_windows": _cached(replace(found, cache=_without_window(found.cache)), 1),
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
                "weights_fit": found.weights_fit(sparks=sparks, usable=usable),
                "context": found.longest_context(sparks=sparks, usable=usable, value_bytes=size),
                "most_context": found.most_context,
            }
            for sparks in SPARKS
            for name, size in CACHE_BYTES.items()
        ],
        "notes": list(found.notes),
    }


def _cached(found: Costs, context: int) -> dict[str, int | None]:
    sizes = {name: found.cache_bytes(context, value_bytes=size) for name, size in CACHE_BYTES.items()}
    return {name: None if size is None else round(size) for name, size in sizes.items()}


def _without_window(cache: tuple[CacheLayer, ...] | None) -> tuple[CacheLayer, ...] | None:
    return None if cache is None else tuple(layer for layer in cache if layer.window is None)
