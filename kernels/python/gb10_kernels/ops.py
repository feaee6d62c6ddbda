"""The operators, as functions with names and types; importing this loads the library.

Each operator checks shapes, dtypes, contiguity, alignment and devices itself and says what is wrong. The fakes below
tell torch.compile what comes out.
"""

import torch
from torch import Tensor

from gb10_kernels import library

library.load()

BLOCK = 16
"""The weights that share a scale."""
MOST_TOKENS = 8
"""The rows of x that gemv takes."""


def quantize(
    x: Tensor, global_scale: Tensor, *, tiled_scales: bool = False, as_modelopt: bool = False
) -> tuple[Tensor, Tensor]:
    """Packed E2M1 [rows, width / 2] and E4M3 block scales of x.

    Args:
        x: [rows, width], bfloat16 or float16.
        global_scale: one float32 number: what vLLM's scaled_fp4_quant takes (about 2688 over the largest magnitude),
            or modelopt's weight_scale_2 (about its reciprocal) with `as_modelopt`.
        tiled_scales: give the scales in tiles of 128 rows by 4 blocks, padded with zeros.
        as_modelopt: follow modelopt's arithmetic instead of vLLM's.
    """
    return torch.ops.gb10_kernels.nvfp4_quantize(x, global_scale, tiled_scales, as_modelopt)


@torch.library.register_fake("gb10_kernels::nvfp4_quantize")
def _(x: Tensor, global_scale: Tensor, tiled_scales: bool, as_modelopt: bool) -> tuple[Tensor, Tensor]:
    del global_scale, as_modelopt
    rows, width = x.shape
    blocks = width // BLOCK
    kept = ((rows + 127) // 128 * 128, (blocks + 3) // 4 * 4) if tiled_scales else (rows, blocks)
    return x.new_empty(rows, width // 2, dtype=torch.uint8), x.new_empty(kept, dtype=torch.float8_e4m3fn)


def gemv(
    x: Tensor,
    weight: Tensor,
    scales: Tensor,
    global_scale: Tensor,
    *,
    rows: int | None = None,
    tiled_scales: bool = False,
    global_scale_divides: bool = False,
) -> Tensor:
    """X [tokens, width] times the transposed NVFP4 weight, [tokens, rows]; 1 to 8 tokens.

    Args:
        x: [tokens, width], bfloat16 or float16.
        weight: [rows, width / 2] packed E2M1, or more of both: padding is not read.
        scales: its E4M3 block scales, linear or tiled 128x4.
        global_scale: one float32 number.
        rows: how many rows of the weight to take; all by default.
        tiled_scales: whether the scales are in tiles of 128 rows by 4 blocks, padded.
        global_scale_divides: whether the global scale divides (compressed-tensors' weight_global_scale).
    """
    rows = weight.shape[0] if rows is None else rows
    return torch.ops.gb10_kernels.nvfp4_gemv(x, weight, scales, global_scale, rows, tiled_scales, global_scale_divides)


@torch.library.register_fake("gb10_kernels::nvfp4_gemv")
def _(x: Tensor, weight: Tensor, scales: Tensor, global_scale: Tensor, rows: int, *_: object) -> Tensor:
    del weight, scales, global_scale
    return x.new_empty(x.shape[0], rows)


def moe_workspace(tokens: int, choices: int, inner: int, device: torch.device) -> Tensor:
    """Scratch memory for moe_decode, good for this many tokens and fewer."""
    return torch.empty(tokens * choices * inner, dtype=torch.float32, device=device)


def moe_decode(
    x: Tensor,
    w13: Tensor,
    s13: Tensor,
    g13: Tensor,
    w2: Tensor,
    s2: Tensor,
    g2: Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
    *,
    expert_map: Tensor | None = None,
    tiled_scales: bool = False,
    up_first: bool = False,
    weight_on_input: bool = False,
    workspace: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """The routed experts' weighted sum for each token, [tokens, hidden].

    Args:
        x: [tokens, hidden], bfloat16 or float16.
        w13: [experts, 2 * inner, hidden / 2] packed E2M1, the gate's rows before the up projection's.
        s13: the E4M3 block scales of w13, linear or tiled 128x4.
        g13: [experts, 2] global scales of gate and up; they multiply.
        w2: [experts, hidden, inner / 2] packed E2M1.
        s2: the E4M3 block scales of w2.
        g2: [experts] global scales.
        topk_weights: [tokens, choices], float32.
        topk_ids: [tokens, choices], int32 or int64.
        expert_map: from a global id to a place in w13, or -1 for an expert that is not here; int32.
        tiled_scales: whether s13 and s2 are in tiles of 128 rows by 4 blocks, padded.
        up_first: whether the up projection's rows come before the gate's.
        weight_on_input: whether topk_weights scale x instead of the results.
        workspace: from moe_workspace; made for this call when left out.
        out: where to write; made for this call when left out.
    """
    if workspace is None:
        workspace = moe_workspace(x.shape[0], topk_ids.shape[1], w2.shape[2] * 2, x.device)
    if out is None:
        out = torch.empty_like(x)
    torch.ops.gb10_kernels.nvfp4_moe_decode(
        x,
        w13,
        s13,
        g13,
        w2,
        s2,
        g2,
        topk_weights,
        topk_ids,
        expert_map,
        tiled_scales,
        up_first,
        weight_on_input,
        workspace,
        out,
    )
    return out


@torch.library.register_fake("gb10_kernels::nvfp4_moe_decode")
def _(*_: object) -> None:
    return None


def gemv_2of4(x: Tensor, values: Tensor, positions: Tensor, scales: Tensor, global_scale: Tensor) -> Tensor:
    """X [tokens, width] times the transposed weights of sparsity.keep_two_of_four, [tokens, rows]."""
    return torch.ops.gb10_kernels.nvfp4_gemv_2of4(x, values, positions, scales, global_scale)


@torch.library.register_fake("gb10_kernels::nvfp4_gemv_2of4")
def _(x: Tensor, values: Tensor, *_: object) -> Tensor:
    return x.new_empty(x.shape[0], values.shape[0])
