"""What the kernels compute, in plain torch and float64: the judge of the tests, the self-test and the benchmarks."""

import torch
from torch import Tensor

BLOCK = 16
"""The weights that share a scale."""

_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E2M1_VALUES = torch.tensor([*_MAGNITUDES, *(-magnitude for magnitude in _MAGNITUDES)], dtype=torch.float64)
"""The value of each of the sixteen codes."""


def tile_scales(scales: Tensor) -> Tensor:
    """Put linear block scales [..., N, blocks] into tiles of 128 rows by 4 blocks, padded with zeros.

    The result has the padded shape, as vLLM keeps it; within a tile the order is row % 32, row / 32, block.
    """
    *experts, rows, blocks = scales.shape
    padded_rows, padded_blocks = -(-rows // 128) * 128, -(-blocks // 4) * 4
    # As bytes: not every operation knows float8.
    padded = torch.zeros(*experts, padded_rows, padded_blocks, dtype=torch.uint8, device=scales.device)
    padded[..., :rows, :blocks] = scales.view(torch.uint8)
    tiles = padded.reshape(-1, padded_rows // 128, 4, 32, padded_blocks // 4, 4).permute(0, 1, 4, 3, 2, 5)
    return tiles.reshape(*experts, padded_rows, padded_blocks).contiguous().view(torch.float8_e4m3fn)


def untile_scales(scales: Tensor, rows: int, blocks: int) -> Tensor:
    """Undo tile_scales: the linear scales [..., rows, blocks]."""
    *experts, padded_rows, padded_blocks = scales.shape
    tiles = scales.view(torch.uint8).reshape(-1, padded_rows // 128, padded_blocks // 4, 32, 4, 4)
    linear = tiles.permute(0, 1, 4, 3, 2, 5).reshape(*experts, padded_rows, padded_blocks)
    return linear[..., :rows, :blocks].contiguous().view(torch.float8_e4m3fn)


def unpack(packed: Tensor) -> Tensor:
    """The E2M1 values of packed bytes, the low nibble first."""
    values = E2M1_VALUES.to(packed.device)
    codes = torch.stack((packed & 0xF, packed >> 4), dim=-1).flatten(-2)
    return values[codes.long()]


def dequantize(packed: Tensor, scales: Tensor, global_scale: Tensor | float) -> Tensor:
    """The weights [..., N, K] of packed bytes [..., N, K/2] and linear scales [..., N, K/16].

    `global_scale` multiplies and has the leading dimensions: modelopt's weight_scale_2, or the reciprocal of
    compressed-tensors' weight_global_scale.
    """
    blocks = scales.to(torch.float64).repeat_interleave(BLOCK, dim=-1)
    scale = torch.as_tensor(global_scale, dtype=torch.float64, device=packed.device)
    return unpack(packed) * blocks * scale[..., None, None]


def gemv(x: Tensor, packed: Tensor, scales: Tensor, global_scale: Tensor | float) -> Tensor:
    """X [M, K] times the transposed weights, in float64."""
    return x.to(torch.float64) @ dequantize(packed, scales, global_scale).T


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
    weight_on_input: bool = False,
    up_first: bool = False,
) -> Tensor:
    """The routed experts' sum for each token, in float64; scales are linear, g13 is [experts, 2] (gate, up)."""
    experts, inner = w13.shape[0], w13.shape[1] // 2
    out = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
    for token in range(x.shape[0]):
        for choice in range(topk_ids.shape[1]):
            expert = int(topk_ids[token, choice])
            if expert_map is not None:
                expert = int(expert_map[expert]) if 0 <= expert < len(expert_map) else -1
            if not 0 <= expert < experts:
                continue
            weight = topk_weights[token, choice].to(torch.float64)
            states = x[token].to(torch.float64) * (weight if weight_on_input else 1.0)
            halves = dequantize(w13[expert], s13[expert], 1.0) @ states
            gate, up = (halves[inner:], halves[:inner]) if up_first else (halves[:inner], halves[inner:])
            gate, up = gate * g13[expert, 0].to(torch.float64), up * g13[expert, 1].to(torch.float64)
            activated = torch.nn.functional.silu(gate) * up
            result = dequantize(w2[expert], s2[expert], g2[expert]) @ activated
            out[token] += result * (1.0 if weight_on_input else weight)
    return out
