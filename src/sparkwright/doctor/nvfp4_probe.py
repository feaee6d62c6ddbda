"""Runs in a process of its own, with vLLM: one small NVFP4 product by vLLM's own operators, against float64.

The operands are such that quantizing loses nothing: every block of 16 holds E2M1 values times one power of two, and a 6
among them. So the product has one right answer, and quantising, the layout of the scales, the tensor cores and the
output's rounding are judged by it together.
"""

import json
import sys
from collections.abc import Callable
from typing import Any, Final

import numpy as np

ROWS, COLUMNS, DEPTH = 128, 256, 512
BLOCK: Final = 16
_MAGNITUDES: Final = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])

Matrix = np.ndarray[Any, np.dtype[np.float64]]
Product = Callable[[Matrix, Matrix], Matrix]


def operand(rows: int, depth: int, seed: int) -> Matrix:
    """A matrix that NVFP4 holds exactly."""
    random = np.random.default_rng(seed)
    blocks = random.choice(_MAGNITUDES, (rows, depth // BLOCK, BLOCK)) * random.choice([-1.0, 1.0], (rows, 1, BLOCK))
    blocks[:, :, 0] = 6.0
    scales = 2.0 ** random.integers(-2, 3, (rows, depth // BLOCK, 1))
    return np.asarray((blocks * scales).reshape(rows, depth), dtype=np.float64)


def compare(product: Product) -> dict[str, float]:
    """Largest error of a product relative to the largest value, and the shares of zeros and of values that are none."""
    left, right = operand(ROWS, DEPTH, 1), operand(COLUMNS, DEPTH, 2)
    right_answer = left @ right.T
    found = product(left, right)
    broken = ~np.isfinite(found)
    error = np.abs(np.where(broken, 0.0, found) - right_answer).max() / np.abs(right_answer).max()
    return {
        "relative_error": float(error),
        "zeros": float((found == 0).mean() - (right_answer == 0).mean()),
        "not_finite": float(broken.mean()),
    }


def by_vllm(left: Matrix, right: Matrix) -> Matrix:
    """The product on the GPU, as vLLM's CUTLASS path computes it."""
    import torch  # type: ignore[import-not-found]
    from vllm import _custom_ops as ops  # type: ignore[import-not-found]

    one = torch.ones(1, dtype=torch.float32, device="cuda")
    operands = [torch.tensor(side, dtype=torch.bfloat16, device="cuda") for side in (left, right)]
    (a, a_scale), (b, b_scale) = (ops.scaled_fp4_quant(side, one) for side in operands)
    answer = ops.cutlass_scaled_fp4_mm(a, b, a_scale, b_scale, one, torch.bfloat16)
    return np.asarray(answer.double().cpu().numpy(), dtype=np.float64)


def main() -> None:
    """Compare, and print what came out."""
    printed, sys.stdout = sys.stdout, sys.stderr  # importing vLLM logs
    print(json.dumps(compare(by_vllm)), file=printed)


if __name__ == "__main__":
    main()
