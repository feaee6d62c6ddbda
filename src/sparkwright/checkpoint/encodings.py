"""How a layer's weight can be stored: which tensors belong together, their types, and what each is for."""

from dataclasses import dataclass
from typing import Final

FLOATS: Final = ("F16", "BF16", "F32", "F64")


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoding:
    """One way to store a weight matrix; the names are the last part of the tensors' names.

    A block scale stands for `block` values along the input and `block_rows` along the output; with `block` 0 for a row
    or for the whole weight.
    """

    name: str
    families: tuple[str, ...]
    weight: str
    bits: int
    block: int = 0
    block_rows: int = 1
    block_scale: str | None = None
    block_scale_dtypes: tuple[str, ...] = ()
    global_scale: str | None = None
    global_is_divisor: bool = False
    input_scale: str | None = None

    @property
    def scales(self) -> tuple[str, ...]:
        """Every scale this encoding knows."""
        return tuple(one for one in (self.block_scale, self.global_scale, self.input_scale) if one is not None)


FLOAT: Final = Encoding(name="unquantized", families=(), weight="weight", bits=16)
UNKNOWN: Final = Encoding(name="unknown", families=(), weight="weight", bits=8)
MODELOPT_NVFP4: Final = Encoding(
    name="modelopt NVFP4",
    families=("modelopt",),
    weight="weight",
    bits=4,
    block=16,
    block_scale="weight_scale",
    block_scale_dtypes=("F8_E4M3",),
    global_scale="weight_scale_2",
    input_scale="input_scale",
)
PACKED_NVFP4: Final = Encoding(
    name="compressed-tensors nvfp4-pack-quantized",
    families=("compressed-tensors",),
    weight="weight_packed",
    bits=4,
    block=16,
    block_scale="weight_scale",
    block_scale_dtypes=("F8_E4M3",),
    global_scale="weight_global_scale",
    global_is_divisor=True,
    input_scale="input_global_scale",
)
MODELOPT_MXFP4: Final = Encoding(
    name="modelopt MXFP4",
    families=("modelopt",),
    weight="weight",
    bits=4,
    block=32,
    block_scale="weight_scale",
    block_scale_dtypes=("U8", "F8_E8M0"),
)
PACKED_MXFP4: Final = Encoding(
    name="compressed-tensors mxfp4-pack-quantized",
    families=("compressed-tensors",),
    weight="weight_packed",
    bits=4,
    block=32,
    block_scale="weight_scale",
    block_scale_dtypes=("U8", "F8_E8M0"),
)
BLOCKS_MXFP4: Final = Encoding(
    name="MXFP4 blocks and scales",
    families=("mxfp4",),
    weight="blocks",
    bits=4,
    block=32,
    block_scale="scales",
    block_scale_dtypes=("U8", "F8_E8M0"),
)
FP8: Final = Encoding(
    name="FP8",
    families=("modelopt", "compressed-tensors", "fp8", "fbgemm_fp8"),
    weight="weight",
    bits=8,
    block_scale="weight_scale",
    block_scale_dtypes=("F32", "BF16", "F16"),
    input_scale="input_scale",
)
BLOCK_FP8: Final = Encoding(
    name="FP8 with 128x128 blocks",
    families=("fp8", "modelopt", "compressed-tensors"),
    weight="weight",
    bits=8,
    block=128,
    block_rows=128,
    block_scale="weight_scale_inv",
    block_scale_dtypes=("F32", "BF16", "F8_E8M0", "U8"),
)
MISTRAL_FP8: Final = Encoding(
    name="FP8",
    families=("fp8",),
    weight="weight",
    bits=8,
    block_scale="weight_scale_inv",
    block_scale_dtypes=("F32", "BF16", "F16"),
    input_scale="activation_scale",
)
"""FP8 under the names of blocks, with one scale for the whole weight: Mistral's in the transformers format."""
MXFP8: Final = Encoding(
    name="MXFP8",
    families=("modelopt", "compressed-tensors", "mxfp8"),
    weight="weight",
    bits=8,
    block=32,
    block_scale="weight_scale",
    block_scale_dtypes=("U8", "F8_E8M0"),
)
# Formats that are told apart to be counted; of their scales nothing is known here.
INT8: Final = Encoding(name="INT8", families=(), weight="weight", bits=8)
PACKED_INTEGERS: Final = {
    bits: Encoding(name=f"compressed-tensors INT{bits} pack-quantized", families=(), weight="weight_packed", bits=bits)
    for bits in (4, 8)
}
"""Integers packed along the input, by their bits."""
QWEIGHTS: Final = {
    bits: Encoding(name=f"AWQ or GPTQ INT{bits}", families=(), weight="qweight", bits=bits) for bits in (2, 3, 4, 8)
}
"""Integers packed along the output (AWQ) or the input (GPTQ), by their bits."""

SCALE_PARTS: Final = frozenset(
    {
        "weight_scale",
        "weight_scale_2",
        "weight_global_scale",
        "weight_scale_inv",
        "input_scale",
        "input_global_scale",
        "activation_scale",
    }
)
"""Names of tensors that only make sense beside a quantized weight."""
