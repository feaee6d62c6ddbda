"""2:4 structured sparsity of NVFP4 weights. It is lossy: half of the weights are thrown away.

Nothing in this package does this unless it is asked to, and what was lost is measured before it is accepted.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from gb10_kernels.reference import dequantize


class TooLossyError(ValueError):
    """A layer would lose more than its owner allows."""


@dataclass(frozen=True, kw_only=True)
class Loss:
    """What a layer loses by keeping two weights of four."""

    relative_l2_error: float
    """The root of the sum of squares of what is dropped, over that of all weights."""
    dropped_nonzero: float
    """The share of the weights that are not zero and are dropped, of those that are not zero."""


@dataclass(frozen=True, kw_only=True)
class Sparse:
    """NVFP4 weights of which two in four consecutive ones are kept: 3.5 bits a weight in place of 4.5."""

    values: Tensor
    """[..., N, K/4] bytes: the kept codes of one group of four, the earlier in the low nibble."""
    positions: Tensor
    """[..., N, K/8] bytes: of two groups, four bits each: the place of the earlier in the low two bits."""
    scales: Tensor
    """[..., N, K/16] E4M3, as they were."""
    global_scale: Tensor
    loss: Loss


def keep_two_of_four(packed: Tensor, scales: Tensor, global_scale: Tensor, *, most_relative_l2_error: float) -> Sparse:
    """Keep the two of each four consecutive weights that are largest by their dequantized magnitude.

    Of equals the earlier is kept. `scales` are linear, `global_scale` multiplies.

    Raises:
        TooLossyError: the relative L2 error is above what the caller allows, or is not a number.
        ValueError: the width is no multiple of 16.
    """
    width = packed.shape[-1] * 2
    if width % 16:
        raise ValueError(f"the rows have {width} weights; NVFP4 needs a multiple of 16")
    codes = torch.stack((packed & 0xF, packed >> 4), dim=-1).flatten(-2).unflatten(-1, (-1, 4))
    # In float64, and with the scale that the four share: the largest stay the largest, and the loss is the true one.
    weights = dequantize(packed, scales, global_scale).unflatten(-1, (-1, 4))
    kept = torch.sort(weights.abs(), dim=-1, descending=True, stable=True).indices[..., :2].sort(dim=-1).values
    loss = _loss(weights, kept)
    if not loss.relative_l2_error <= most_relative_l2_error:
        raise TooLossyError(
            f"keeping two of four loses {loss.relative_l2_error:.1%} of the layer's L2 norm and "
            f"{loss.dropped_nonzero:.1%} of its non-zero weights; at most {most_relative_l2_error:.1%} is allowed"
        )
    pairs = torch.gather(codes, -1, kept)
    places = (kept[..., 0] | (kept[..., 1] << 2)).to(torch.uint8).unflatten(-1, (-1, 2))
    return Sparse(
        values=(pairs[..., 0] | (pairs[..., 1] << 4)).contiguous(),
        positions=(places[..., 0] | (places[..., 1] << 4)).contiguous(),
        scales=scales,
        global_scale=global_scale,
        loss=loss,
    )


def _loss(weights: Tensor, kept: Tensor) -> Loss:
    dropped = weights.scatter(-1, kept, 0.0)
    nonzero = torch.count_nonzero(weights).item()
    whole = torch.linalg.vector_norm(weights)
    return Loss(
        relative_l2_error=0.0 if whole == 0 else float(torch.linalg.vector_norm(dropped) / whole),
        dropped_nonzero=torch.count_nonzero(dropped).item() / max(nonzero, 1),
    )


def expand(sparse: Sparse) -> Tensor:
    """The packed weights [..., N, K/2] that are left, with zeros in the places of the others."""
    kept = torch.stack((sparse.values & 0xF, sparse.values >> 4), dim=-1)
    places = torch.stack((sparse.positions & 0xF, sparse.positions >> 4), dim=-1).flatten(-2)
    indices = torch.stack((places & 3, places >> 2), dim=-1).long()
    codes = torch.zeros(*kept.shape[:-1], 4, dtype=torch.uint8, device=kept.device).scatter(-1, indices, kept)
    codes = codes.flatten(-2).unflatten(-1, (-1, 2))
    return codes[..., 0] | (codes[..., 1] << 4)
