"""Every kernel on small inputs against the float64 reference, on the device that is there.

For `sparkwright doctor`, and for whoever has just installed the package: python -m gb10_kernels.selftest
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gb10_kernels import reference
from gb10_kernels.library import NotBuiltError


@dataclass(frozen=True, kw_only=True)
class Result:
    """How one check went."""

    name: str
    passed: bool
    detail: str
    seconds: float


# Tokens, rows and width: together with _TALL_PRODUCTS every instance of nvfp4_gemv, each with more of x than shared
# memory holds at once. Loads have 16 bytes where 32 divides the width; two warps share rows that are few and wide.
# 300 rows lie in three tiles of scales.
_PRODUCTS = (
    *((1, 300, 208), (1, 67, 4112), (1, 67, 9248)),
    *((2, 67, 2064), (2, 67, 5152)),
    *((tokens, 67, width) for tokens in (3, 4, 8) for width in (1040, 3104)),
)
# Enough rows that one warp takes each alone; too slow for a CPU.
_TALL_PRODUCTS = tuple((tokens, 8200, 9248) for tokens in (1, 2, 4, 8))
_PRODUCTS_2OF4 = tuple((tokens, 33, width) for tokens in (1, 2, 4, 8, 9) for width in (528, 2112))
# Hidden width, inner width and choices: more than a warp takes in one turn of each loop, with loads of 8 and 16 bytes.
_EXPERTS = ((528, 48, 11), (1056, 96, 11))
# A row of the down projection is more than one turn by itself; too slow for a CPU.
_WIDE_EXPERTS = ((2048, 1536, 8),)

# Half a unit in the last place of what is written, and room for the float32 sums behind it.
_ROUNDING = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
_SUMS = 1e-5


def _weights(generator: torch.Generator, device: torch.device, *shape: int) -> tuple[Tensor, Tensor]:
    *experts, rows, width = shape
    packed = torch.randint(0, 256, (*experts, rows, width // 2), dtype=torch.uint8, generator=generator)
    scales = torch.rand(*experts, rows, width // reference.BLOCK, generator=generator) + 0.25
    return packed.to(device), scales.to(torch.float8_e4m3fn).to(device)


def _compare(shape: str, got: Tensor, wanted: Tensor) -> float:
    """The largest error, relative to the largest value."""
    largest = wanted.abs().max()
    bound = _ROUNDING[got.dtype] * wanted.abs() + _SUMS * largest
    error = (got.double() - wanted).abs()
    worst = (error / largest).max().item()
    # A NaN is no smaller than anything, so it counts as an error.
    if not bool((error <= bound).all()):
        raise AssertionError(
            f"{shape}: {int((~(error <= bound)).sum())} of {error.numel()} values are off, by {worst:.1e}"
        )
    return worst


def _quantize(device: torch.device) -> str:
    from gb10_kernels import ops

    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16).to(device)
    # A power of two, and the values of E2M1 as inputs: nothing is rounded on the way.
    exact = reference.E2M1_VALUES.float().repeat(1, 4).to(torch.bfloat16).to(device)
    codes, scales = ops.quantize(exact, torch.tensor(64.0, device=device))
    if not torch.equal(reference.dequantize(codes, scales, 1 / 64), exact.double()):
        raise AssertionError("values that NVFP4 holds exactly came back changed")
    codes, scales = ops.quantize(x, torch.tensor(512.0, device=device), tiled_scales=True)
    linear = reference.untile_scales(scales, 5, 4)
    back = reference.dequantize(codes, linear, 1 / 512)
    error = ((back - x.double()).norm() / x.double().norm()).item()
    if not 0.05 < error < 0.15:
        raise AssertionError(f"relative L2 error {error:.3f} of normal values; NVFP4's is about 0.1")
    return f"exact values exact, relative L2 error {error:.3f}"


def _gemv(dtype: torch.dtype, *, tiled: bool) -> Callable[[torch.device], str]:
    def check(device: torch.device) -> str:
        from gb10_kernels import ops

        generator = torch.Generator().manual_seed(2)
        worst = 0.0
        for tokens, rows, width in _PRODUCTS + (_TALL_PRODUCTS if device.type == "cuda" else ()):
            packed, scales = _weights(generator, device, rows, width)
            x = torch.randn(tokens, width, generator=generator).to(dtype).to(device)
            scale = torch.tensor(0.03, device=device)
            # A part of the rows at a time: all of them in float64 would take gigabytes.
            parts = zip(packed.split(1024), scales.split(1024), strict=True)
            wanted = torch.cat([reference.gemv(x, *part, scale) for part in parts], dim=1)
            kept = reference.tile_scales(scales) if tiled else scales
            got = ops.gemv(x, packed, kept, scale, tiled_scales=tiled)
            worst = max(worst, _compare(f"{tokens} times {rows} x {width}", got, wanted))
        return f"relative error {worst:.1e}"

    return check


def _not_a_number(device: torch.device) -> str:
    from gb10_kernels import ops

    packed, scales = _weights(torch.Generator().manual_seed(3), device, 16, 64)
    scales.view(torch.uint8)[3, 1] = 0x7F
    x = torch.ones(2, 64, dtype=torch.bfloat16, device=device)
    x[1, 5] = float("inf")
    scale = torch.tensor(1.0, device=device)
    got, wanted = ops.gemv(x, packed, scales, scale), reference.gemv(x, packed, scales, scale)
    if not torch.equal(got.isnan(), wanted.isnan()) or not torch.equal(got.isinf(), wanted.isinf()):
        raise AssertionError("NaN or infinity is in other places than in the reference")
    return f"{int(wanted.isnan().sum())} NaN and {int(wanted.isinf().sum())} infinities where they belong"


def _layer(
    generator: torch.Generator, device: torch.device, hidden: int, inner: int, *, experts: int = 6
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Experts in the order in which moe_decode takes them: w13, s13, g13, w2, s2, g2."""
    w13, s13 = _weights(generator, device, experts, 2 * inner, hidden)
    w2, s2 = _weights(generator, device, experts, hidden, inner)
    g13 = (torch.rand(experts, 2, generator=generator) * 0.02).to(device)
    g2 = (torch.rand(experts, generator=generator) * 0.02).to(device)
    return w13, s13, g13, w2, s2, g2


def _moe(dtype: torch.dtype, *, tiled: bool) -> Callable[[torch.device], str]:
    def check(device: torch.device) -> str:
        from gb10_kernels import ops

        generator = torch.Generator().manual_seed(4)
        # Of the eight that are known two are not here, and there is no ninth.
        expert_map = torch.tensor([0, -1, 1, 2, 3, 4, 5, -1], dtype=torch.int32, device=device)
        worst = 0.0
        for hidden, inner, choices in _EXPERTS + (_WIDE_EXPERTS if device.type == "cuda" else ()):
            w13, s13, g13, w2, s2, g2 = _layer(generator, device, hidden, inner)
            x = torch.randn(2, hidden, generator=generator).to(dtype).to(device)
            weights = torch.rand(2, choices, generator=generator).to(device)
            ids = torch.randint(0, 9, (2, choices), generator=generator).to(device)
            wanted = reference.moe_decode(x, w13, s13, g13, w2, s2, g2, weights, ids, expert_map=expert_map)
            if tiled:
                s13, s2 = reference.tile_scales(s13), reference.tile_scales(s2)
            got = ops.moe_decode(x, w13, s13, g13, w2, s2, g2, weights, ids, expert_map=expert_map, tiled_scales=tiled)
            worst = max(worst, _compare(f"{choices} experts of {hidden} x {inner}", got, wanted))
        return f"relative error {worst:.1e}"

    return check


def _sparse(device: torch.device) -> str:
    from gb10_kernels import ops
    from gb10_kernels.sparsity import expand, keep_two_of_four

    generator = torch.Generator().manual_seed(5)
    scale = torch.tensor(0.03, device=device)
    worst = 0.0
    for tokens, rows, width in _PRODUCTS_2OF4:
        packed, scales = _weights(generator, device, rows, width)
        kept = keep_two_of_four(packed, scales, scale, most_relative_l2_error=1.0)
        for dtype in _ROUNDING:
            x = torch.randn(tokens, width, generator=generator).to(dtype).to(device)
            got = ops.gemv_2of4(x, kept.values, kept.positions, kept.scales, kept.global_scale)
            wanted = reference.gemv(x, expand(kept), scales, scale)
            worst = max(worst, _compare(f"{tokens} times {rows} x {width}", got, wanted))
    return f"relative error {worst:.1e}"


def _graph(product: Callable[[torch.device], Callable[[Tensor], Tensor]]) -> Callable[[torch.device], str]:
    """A captured product, replayed with other inputs, against one that is not captured; x is [1, 224]."""

    def check(device: torch.device) -> str:
        x = torch.ones(1, 224, dtype=torch.bfloat16, device=device)
        multiply = product(device)
        before = multiply(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = multiply(x)
        x.copy_(torch.randn(x.shape, generator=torch.Generator().manual_seed(6)))
        graph.replay()
        wanted = multiply(x)
        if torch.equal(wanted, before) or not torch.equal(captured, wanted):
            raise AssertionError("a replayed graph gives another result")
        return "a replayed graph gives the same bits"

    return check


def _one_linear(device: torch.device) -> Callable[[Tensor], Tensor]:
    from gb10_kernels import ops

    packed, scales = _weights(torch.Generator().manual_seed(7), device, 64, 224)
    kept, scale = reference.tile_scales(scales), torch.tensor(0.5, device=device)
    return lambda x: ops.gemv(x, packed, kept, scale, tiled_scales=True)


def _two_experts(device: torch.device) -> Callable[[Tensor], Tensor]:
    from gb10_kernels import ops

    w13, s13, g13, w2, s2, g2 = _layer(torch.Generator().manual_seed(8), device, 224, 96)
    first, second = reference.tile_scales(s13), reference.tile_scales(s2)
    weights, ids = torch.ones(1, 2, device=device), torch.tensor([[0, 5]], device=device)
    return lambda x: ops.moe_decode(x, w13, first, g13, w2, second, g2, weights, ids, tiled_scales=True)


def _checks(device: torch.device) -> Iterator[tuple[str, Callable[[torch.device], str]]]:
    yield "nvfp4_quantize", _quantize
    for dtype in _ROUNDING:
        for tiled in (False, True):
            suffix = f"{str(dtype).removeprefix('torch.')}, {'tiled' if tiled else 'linear'} scales"
            yield f"nvfp4_gemv, {suffix}", _gemv(dtype, tiled=tiled)
            yield f"nvfp4_moe_decode, {suffix}", _moe(dtype, tiled=tiled)
    yield "nvfp4_gemv, NaN and infinity", _not_a_number
    yield "nvfp4_gemv_2of4", _sparse
    if device.type == "cuda":
        yield "nvfp4_gemv in a CUDA graph", _graph(_one_linear)
        yield "nvfp4_moe_decode in a CUDA graph", _graph(_two_experts)


def run(device: str | torch.device | None = None) -> list[Result]:
    """Check every kernel; a check that cannot run has failed. The current CUDA device by default, or the CPU."""
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    results = []
    for name, check in _checks(place):
        start = time.perf_counter()
        try:
            detail, passed = check(place), True
        except (AssertionError, RuntimeError, NotBuiltError) as error:
            detail, passed = f"{type(error).__name__}: {error}".splitlines()[0], False
        results.append(Result(name=name, passed=passed, detail=detail, seconds=time.perf_counter() - start))
    return results


def main() -> int:
    """Print the results; 0 when all passed."""
    parser = argparse.ArgumentParser(prog="python -m gb10_kernels.selftest", description=__doc__)
    parser.add_argument("--device", help="such as cuda:1; the current CUDA device, or the CPU, by default")
    results = run(parser.parse_args().device)
    for result in results:
        sys.stdout.write(f"{'passed' if result.passed else 'FAILED'}  {result.name}: {result.detail}\n")
    return 0 if all(result.passed for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
