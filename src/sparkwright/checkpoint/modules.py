"""Tensors grouped into the modules they belong to, with what each module is for."""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property, lru_cache
from typing import Final

from sparkwright.checkpoint import encodings
from sparkwright.checkpoint.encodings import FLOATS, SCALE_PARTS, Encoding
from sparkwright.checkpoint.headers import BITS, Tensor

# Experts of a layer stacked in one tensor: the part is joined with an underscore, or there is none.
_STACKED: Final = re.compile(
    r"(?P<module>.*\bexperts\.(?:gate_up_proj|down_proj))"
    r"(?:_(?P<part>blocks|scales|bias|weight_packed|weight_scale_2|weight_scale_inv|weight_scale|input_scale))?"
)
_LAYER: Final = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d+)\.")
_EXPERT: Final = re.compile(r"\bexperts\.(\d+)\.")
_EMBEDDING: Final = re.compile(r"(?:^|_)(?:emb|embed|embeds|embedding|embeddings|wte|wpe)(?:$|_)")
_HEADS: Final = ("lm_head", "embed_out")
_VISION: Final = re.compile(r"(?:^|\.)(?:visual|vision\w*|vit\w*|audio\w*|multi_modal\w*|mm_\w+|image_\w+)\.")

_WEIGHTS: Final = ("weight", "weight_packed", "qweight")
_PREDICTION: Final = re.compile(r"(?:^|.*?\.)(?:mtp(?:_\w+)?|\w*nextn\w*)(?=\.|$)")
_DIGITS: Final = re.compile(r"\d+")
_MOST_DIGITS: Final = 6  # a longer number in a name is not the number of a layer

FUSED: Final = (
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
    ("w1", "w3"),
    ("q_a_proj", "kv_a_proj_with_mqa"),
    ("in_proj_qkv", "in_proj_z"),
    ("in_proj_b", "in_proj_a"),
    ("query", "key", "value"),
    ("wq", "wk", "wv"),
    ("c_fc_0", "c_fc_1"),
)
"""What vLLM fuses into one layer, which then has one global scale."""
_FUSED_INTO: Final = {name: group[0] for group in FUSED for name in group}


class Role(StrEnum):
    """What a module is for."""

    EMBEDDING = "embedding"
    HEAD = "head"
    ATTENTION = "attention"
    MLP = "mlp"
    EXPERT = "routed expert"
    SHARED_EXPERT = "shared expert"
    ROUTER = "router"
    NORM = "norm and other"
    MTP = "multi-token prediction"
    VISION = "vision and audio"


def layer_index(name: str) -> int | None:
    """The number of the decoder layer a module belongs to."""
    found = _LAYER.search(name)
    return int(found[1]) if found and len(found[1]) <= _MOST_DIGITS else None


def is_vision(name: str) -> bool:
    """Whether a name is of what sees or hears beside the language model."""
    return _VISION.search(f"{name}.") is not None


def prediction_module(name: str, numbered: range) -> str | None:
    """The module for multi-token prediction that a tensor lies in; None for tensors of plain decoding.

    Either its name says so (`mtp.fc` lies in `mtp`), or its layer has one of the numbers that follow the decoder's.
    """
    if found := _PREDICTION.match(name):
        return found[0]
    if is_vision(name) or layer_index(name) not in numbered:
        return None
    layer = _LAYER.search(name)
    return name[: layer.end() - 1] if layer else None


@dataclass(frozen=True)
class Module:
    """One module of the model with its tensors by the last part of their names.

    `packed_bits` are the bits of the integers in `weight_packed`, which no header tells.
    """

    name: str
    parts: Mapping[str, Tensor]
    packed_bits: int | None = None

    @cached_property
    def encoding(self) -> Encoding | None:
        """How the weight is stored; None when there is no weight."""
        return _encoding(self.parts, self.packed_bits)

    @cached_property
    def weight(self) -> Tensor | None:
        """The tensor that holds the weight."""
        if self.encoding is encodings.UNKNOWN:
            return next(self.parts[part] for part in _WEIGHTS if part in self.parts)
        return self.parts.get(self.encoding.weight) if self.encoding else None

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """The weight's shape in values; the inputs come last."""
        if self.weight is None or self.encoding is None:
            return ()
        shape = self.weight.shape
        if self.encoding is encodings.BLOCKS_MXFP4 and len(shape) > 1:
            return (*shape[:-2], shape[-2] * shape[-1] * 2)
        if self.encoding is encodings.QWEIGHTS.get(self.encoding.bits):
            outputs = self.parts["scales"].shape[-1]
            return outputs, self.weight.elements * 32 // self.encoding.bits // outputs
        if self.is_quantized and self.encoding is not encodings.UNKNOWN and shape:
            values = BITS[self.weight.dtype] // self.encoding.bits
            if self._packed_inputs_first:
                return (*shape[:-2], shape[-1], shape[-2] * values)
            return (*shape[:-1], shape[-1] * values)
        return shape

    @cached_property
    def _packed_inputs_first(self) -> bool:
        """Whether a stack of experts is stored and packed with the inputs before the outputs, as Llama 4 has it."""
        if self.weight is None or self.encoding is None or len(self.weight.shape) < 3 or not self.encoding.block:
            return False
        scale, shape = self.parts.get(self.encoding.block_scale or ""), self.weight.shape
        blocks = shape[-2] * BITS[self.weight.dtype] // self.encoding.bits // self.encoding.block
        return scale is not None and scale.shape == (*shape[:-2], blocks, shape[-1])

    @cached_property
    def values(self) -> int:
        """How many weights it has."""
        return math.prod(self.shape) if self.weight is not None else 0

    @cached_property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        return sum(tensor.nbytes for tensor in self.parts.values())

    @cached_property
    def layer(self) -> int | None:
        """The number of its decoder layer."""
        return layer_index(self.name)

    @cached_property
    def expert(self) -> int | None:
        """The number of its expert, where each has tensors of its own."""
        found = _EXPERT.search(self.name + ".")
        return int(found[1]) if found and len(found[1]) <= _MOST_DIGITS else None

    @cached_property
    def stacked_experts(self) -> int:
        """How many experts lie in one tensor; 0 where they do not."""
        if len(self.shape) < 3 or self.expert is not None:
            return 0
        return self.shape[0] if any(word == "experts" or word.endswith("moe") for word in self.name.split(".")) else 0

    @cached_property
    def role(self) -> Role:
        """What it is for, as far as its name and shape tell."""
        return _role(self)

    @cached_property
    def is_embedding(self) -> bool:
        """Whether it is a table of which a row is taken, of tokens or of positions, in whatever part of the model."""
        return _is_embedding(self.name.rpartition(".")[2])

    @cached_property
    def is_quantized(self) -> bool:
        """Whether the weight is stored in less than a float."""
        return self.encoding is not None and self.encoding is not encodings.FLOAT

    @property
    def is_linear(self) -> bool:
        """Whether it multiplies its input with a matrix (embeddings, norms and convolutions do not)."""
        if self.is_embedding or self.weight is None:
            return False
        return self.is_quantized or len(self.shape) == 2 or self.stacked_experts > 0

    @property
    def fused_group(self) -> str | None:
        """The same for all modules that vLLM fuses with this one."""
        parent, _, last = self.name.rpartition(".")
        return f"{parent}.{_FUSED_INTO[last]}" if last in _FUSED_INTO else None


def group(tensors: Iterable[Tensor], *, packed_bits: int | None = None) -> dict[str, Module]:
    """The modules that the tensors make up, by name."""
    found: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for tensor in tensors:
        module, part = split(tensor.name)
        found[module][part] = tensor
    return {name: Module(name, parts, packed_bits) for name, parts in sorted(found.items())}


def split(name: str) -> tuple[str, str]:
    """Module and part of a tensor's name."""
    if stacked := _STACKED.fullmatch(name):
        return stacked["module"], stacked["part"] or "weight"
    module, _, part = name.rpartition(".")
    return module, part


def _encoding(parts: Mapping[str, Tensor], packed_bits: int | None) -> Encoding | None:
    block_scale = parts.get("weight_scale")
    mx = block_scale is not None and block_scale.dtype in encodings.MODELOPT_MXFP4.block_scale_dtypes
    if "blocks" in parts:
        return encodings.BLOCKS_MXFP4
    if packed := parts.get("weight_packed"):
        if packed.dtype != "U8":
            bits = packed_bits if packed.dtype == "I32" else None
            return encodings.PACKED_INTEGERS.get(bits or 0, encodings.UNKNOWN)
        return encodings.PACKED_MXFP4 if mx else encodings.PACKED_NVFP4
    if "qweight" in parts:
        return encodings.QWEIGHTS.get(_qweight_bits(parts), encodings.UNKNOWN)
    weight = parts.get("weight")
    if weight is None:
        return None
    if weight.dtype in FLOATS:
        return encodings.FLOAT
    if weight.dtype == "F8_E4M3":
        if inverse := parts.get("weight_scale_inv"):
            return encodings.BLOCK_FP8 if len(inverse.shape) > 1 else encodings.MISTRAL_FP8
        return encodings.MXFP8 if mx else encodings.FP8
    if weight.dtype == "I8":
        return encodings.INT8
    if weight.dtype in ("U8", "F4"):
        return encodings.MODELOPT_MXFP4 if mx else encodings.MODELOPT_NVFP4
    return encodings.UNKNOWN


def _qweight_bits(parts: Mapping[str, Tensor]) -> int:
    """The bits of packed integers by the zero points, of which there is one for each scale; 0 if these do not tell."""
    zeros, scales = parts.get("qzeros"), parts.get("scales")
    if zeros is None or scales is None or parts["qweight"].dtype != "I32":
        return 0
    if not zeros.shape or not scales.shape or not scales.elements:
        return 0
    return zeros.shape[-1] * 32 // scales.shape[-1]


def _role(module: Module) -> Role:
    # Layers and experts are alike: without their numbers few names are left to look at.
    named = _named_role(_DIGITS.sub("", module.name))
    if named in (Role.MTP, Role.VISION, Role.HEAD, Role.EMBEDDING):
        return named
    if module.weight is None or (len(module.shape) < 2 and not module.is_quantized):
        return Role.NORM
    if module.stacked_experts and named is not Role.ROUTER:
        return Role.EXPERT
    return Role.NORM if named is Role.MLP and (module.layer is None or len(module.shape) != 2) else named


@lru_cache(maxsize=1024)
def _named_role(name: str) -> Role:
    """The role by name alone; of a decoder layer's MLP where it tells none."""
    words = name.split(".")
    last = words[-1]
    if _PREDICTION.match(name):
        return Role.MTP
    if is_vision(name):
        return Role.VISION
    if last in _HEADS or name == "output":
        return Role.HEAD
    if _is_embedding(last):
        return Role.EMBEDDING
    if last in ("gate", "router", "shared_expert_gate") or words[-2:-1] == ["router"]:
        return Role.ROUTER
    if "experts" in words:
        return Role.EXPERT
    if any(word.startswith("shared_expert") for word in words):
        return Role.SHARED_EXPERT
    if any("attn" in word or "attention" in word for word in words):
        return Role.ATTENTION
    return Role.MLP


def _is_embedding(last: str) -> bool:
    return last not in _HEADS and _EMBEDDING.search(last) is not None


def orphans(module: Module) -> list[Tensor]:
    """Scales of a module that its weight, as it is stored, has no use for."""
    known = module.encoding.scales if module.encoding else ()
    if module.is_quantized and not known:
        return []
    return [module.parts[part] for part in sorted(SCALE_PARTS & module.parts.keys() - set(known))]
