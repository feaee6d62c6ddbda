"""Whether the files hold the whole model that config.json describes: its layers, and what stands around them."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any, Final

from sparkwright.checkpoint.checkpoint import Checkpoint
from sparkwright.checkpoint.findings import Finding, finding
from sparkwright.checkpoint.modules import Module, Role
from sparkwright.checkpoint.settings import number, strings

_LAYER_PREFIX: Final = re.compile(r"((?:^|.*\.)(?:layers|h|blocks|block)\.)\d+\.(.*)")
_GENERATES: Final = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")
_UNUSED_PAD: Final = -1  # the first Llama configs say so for "none"


@dataclass(frozen=True, kw_only=True)
class _Stack:
    """The decoder layers: what their names begin with, and the modules of each by the rest of their names."""

    prefix: str
    layers: Mapping[int, Mapping[str, Module]]


def check_completeness(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Every finding about the sizes of the model and what of it is there."""
    if checkpoint.config:
        yield from _embedding(checkpoint)
    stack = None if checkpoint.lacks_headers else _stack(checkpoint)
    if stack is not None:
        yield from _layers(checkpoint, stack)
        yield from _surroundings(checkpoint, stack)


def _embedding(checkpoint: Checkpoint) -> Iterator[Finding]:
    settings = checkpoint.text
    embedding = next(
        (
            module
            for module in checkpoint.modules.values()
            if module.role is Role.EMBEDDING
            and len(module.shape) == 2
            and module.name.endswith(("embed_tokens", "wte"))
        ),
        None,
    )
    vocabulary = number(settings, "vocab_size")
    if embedding is not None:
        rows, width = embedding.shape
        if vocabulary is not None and vocabulary != rows:
            yield finding(
                "config-vocab-size",
                [f"{embedding.name}.weight"],
                f"vocab_size is {vocabulary}, the embedding has {rows}",
            )
        hidden = number(settings, "hidden_size", "n_embd")
        if hidden is not None and hidden != width:
            yield finding(
                "config-hidden-size",
                [f"{embedding.name}.weight"],
                f"hidden_size is {hidden}, the embedding has {width}",
            )
        vocabulary = rows
    if vocabulary is not None:
        wrong = [
            f"{key} = {value}"
            for key in ("bos_token_id", "eos_token_id", "pad_token_id")
            for value in _token_ids(settings.get(key))
            if not (0 <= value < vocabulary or (key == "pad_token_id" and value == _UNUSED_PAD))
        ]
        if wrong:
            yield finding("config-token-id", wrong, f"the vocabulary has {vocabulary} tokens")


def _token_ids(value: Any) -> list[int]:  # noqa: ANN401 - whatever stands in the JSON
    values = value if isinstance(value, list) else [value]
    return [one for one in values if isinstance(one, int) and not isinstance(one, bool)]


def _stack(checkpoint: Checkpoint) -> _Stack | None:
    """The longest row of layers with the same beginning."""
    contents: dict[str, dict[int, dict[str, Module]]] = defaultdict(lambda: defaultdict(dict))
    for module in checkpoint.modules.values():
        if module.layer is None or module.role in (Role.VISION, Role.MTP) or module.weight is None:
            continue
        if found := _LAYER_PREFIX.match(module.name):
            contents[found[1]][module.layer][found[2]] = module
    if not contents:
        return None
    prefix = max(contents, key=lambda one: len(contents[one]))
    return _Stack(prefix=prefix, layers=contents[prefix])


def _layers(checkpoint: Checkpoint, stack: _Stack) -> Iterator[Finding]:
    """Whether all layers are there, and none lacks modules that another of its kind has."""
    prefix, layers = stack.prefix, stack.layers
    declared = number(checkpoint.text, "num_hidden_layers", "n_layer")
    extra = number(checkpoint.text, "num_nextn_predict_layers") or 0
    if declared is not None:
        missing = sorted(set(range(min(declared, max(layers) + 2))) - set(layers))
        beyond = sorted(one for one in layers if one >= declared + extra)
        if missing or beyond or len(layers) < declared:
            detail = f"num_hidden_layers is {declared}, the files hold {len(layers)}"
            yield finding("config-num-layers", [f"{prefix}{one}" for one in missing + beyond], detail)
        else:
            yield from _layer_types(checkpoint.text, declared, extra)
    kinds = _kinds(checkpoint.text, layers, declared, extra)
    fullest = {(kinds[one], frozenset(layers[one])) for one in layers}
    lacking = [
        f"{prefix}{one}.{name}"
        for one, names in sorted(layers.items())
        if declared is None or one < declared
        for name in sorted(_richer(names.keys(), {held for kind, held in fullest if kind == kinds[one]}) - names.keys())
    ]
    if lacking:
        yield finding("layer-incomplete", lacking)


def _layer_types(settings: Mapping[str, Any], declared: int, extra: int) -> Iterator[Finding]:
    """Lists that transformers wants to be as long as there are layers; some models count their prediction layers."""
    for key in ("layer_types", "mlp_layer_types"):
        value = settings.get(key)
        if isinstance(value, list) and not declared <= len(value) <= declared + extra:
            yield finding("config-layer-types", [key], f"it names {len(value)}, num_hidden_layers is {declared}")


def _kinds(
    settings: Mapping[str, Any], layers: Iterable[int], declared: int | None, extra: int
) -> dict[int, tuple[str, ...]]:
    """What the config says of each layer, in lists (or patterns of letters) that are as long as there are layers."""
    lists = [
        value
        for key, value in settings.items()
        if (isinstance(value, list) or (isinstance(value, str) and "pattern" in key))
        and declared is not None
        and declared <= len(value) <= declared + extra
    ]
    shared = (declared or 0) - (number(settings, "num_kv_shared_layers") or 0)
    return {one: (*(repr(value[one]) for value in lists if one < len(value)), str(one >= shared)) for one in layers}


def _richer(names: Set[str], others: Iterable[frozenset[str]]) -> Set[str]:
    """The largest of the others that holds all the names and more; the names where there is none."""
    return max((one for one in others if names < one), key=len, default=names)


def _surroundings(checkpoint: Checkpoint, stack: _Stack) -> Iterator[Finding]:
    """Whether the embedding, the final norm and the head are there.

    Names that begin with the layers (`layers.0.`) are those of a model without a head: embedding models and drafts.
    """
    parent = stack.prefix[:-1].rpartition(".")[0]
    if not parent:
        return
    outside = [one for one in checkpoint.modules.values() if one.layer is None and one.role is not Role.VISION]
    lacking = []
    if not any(one.role is Role.EMBEDDING for one in outside):
        lacking.append(f"{parent}: no embedding")
    has_norms = any(len(one.shape) == 1 for modules in stack.layers.values() for one in modules.values())
    if has_norms and not any(len(one.shape) == 1 and one.name.startswith(f"{parent}.") for one in outside):
        lacking.append(f"{parent}: no final norm")
    if _needs_head(checkpoint) and not any(_is_head(checkpoint, one) for one in outside):
        lacking.append("lm_head")
    if lacking:
        yield finding("surroundings-missing", lacking)


def _is_head(checkpoint: Checkpoint, module: Module) -> bool:
    """Whether it is called a head, or has a row for each token and is no embedding."""
    rows = module.shape[0] if len(module.shape) == 2 and module.role is not Role.EMBEDDING else None
    return module.role is Role.HEAD or (rows is not None and rows == number(checkpoint.text, "vocab_size"))


def _needs_head(checkpoint: Checkpoint) -> bool:
    """Whether the model generates text, and no config says that its head is the embedding."""
    architectures = strings(checkpoint.config.get("architectures"))
    if architectures and not any(one.endswith(_GENERATES) for one in architectures):
        return False
    tied = [one.get("tie_word_embeddings") for one in (checkpoint.config, checkpoint.text)]
    return False in tied and True not in tied
