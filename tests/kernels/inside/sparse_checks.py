"""The lossy 2:4 form: what is kept, what is reported, and the kernel that reads it."""

import pytest
import torch  # type: ignore[import-not-found]
from gb10_kernels import ops, reference  # type: ignore[import-not-found]
from gb10_kernels.sparsity import TooLossyError, expand, keep_two_of_four  # type: ignore[import-not-found]

ONE = torch.tensor(1.0)


def weight(rows: int, width: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    packed = torch.randint(0, 256, (rows, width // 2), dtype=torch.uint8, generator=g)
    return packed, (torch.rand(rows, width // 16, generator=g) + 0.1).to(torch.float8_e4m3fn)


def pack(codes: list[int]) -> torch.Tensor:
    pairs = torch.tensor(codes, dtype=torch.uint8).reshape(1, -1, 2)
    return pairs[..., 0] | (pairs[..., 1] << 4)


def test_the_two_largest_are_kept_and_the_loss_is_reported() -> None:
    # 0.5 -6 1 6 | 0 0 0 3 | 2 -2 2 -2 | zeros: -6 and 6, 3 and a zero, the first two of equals.
    codes = pack([1, 15, 2, 7, 0, 8, 0, 5, 4, 12, 4, 12, 0, 0, 0, 0])
    kept = keep_two_of_four(codes, torch.ones(1, 1).to(torch.float8_e4m3fn), ONE, most_relative_l2_error=1.0)
    values = reference.unpack(expand(kept))[0].tolist()
    assert values == [0, -6, 0, 6, 0, 0, 0, 3, 2, -2, 0, 0, 0, 0, 0, 0]
    dropped, whole = 0.5**2 + 1 + 4 + 4, 0.5**2 + 36 + 1 + 36 + 9 + 4 * 4
    assert kept.loss.relative_l2_error == pytest.approx((dropped / whole) ** 0.5)
    assert kept.loss.dropped_nonzero == pytest.approx(4 / 9)


def test_what_is_two_of_four_already_loses_nothing() -> None:
    packed, scales = weight(8, 64)
    once = keep_two_of_four(packed, scales, ONE, most_relative_l2_error=1.0)
    again = keep_two_of_four(expand(once), scales, ONE, most_relative_l2_error=0.0)
    assert (again.loss.relative_l2_error, again.loss.dropped_nonzero) == (0.0, 0.0)
    assert torch.equal(reference.unpack(expand(again)), reference.unpack(expand(once)))


def test_a_layer_that_would_lose_more_than_allowed_is_refused() -> None:
    packed, scales = weight(8, 64)
    loss = keep_two_of_four(packed, scales, ONE, most_relative_l2_error=1.0).loss.relative_l2_error
    assert 0.2 < loss < 0.5
    with pytest.raises(TooLossyError, match=r"loses 3\d\.\d% of the layer's L2 norm .* at most 10\.0% is allowed"):
        keep_two_of_four(packed, scales, ONE, most_relative_l2_error=0.1)
    scales.view(torch.uint8)[0, 0] = 0x7F
    with pytest.raises(TooLossyError):
        keep_two_of_four(packed, scales, ONE, most_relative_l2_error=1.0)


def test_there_is_no_default_for_what_may_be_lost() -> None:
    packed, scales = weight(8, 64)
    with pytest.raises(TypeError, match="most_relative_l2_error"):
        keep_two_of_four(packed, scales, ONE)


@pytest.mark.parametrize("tokens", [*range(1, 9), 11])
@pytest.mark.parametrize("shape", [(1, 16), (37, 208), (16, 2112)], ids=str)
def test_the_kernel_computes_with_what_was_kept(tokens: int, shape: tuple[int, int]) -> None:
    packed, scales = weight(*shape, seed=tokens)
    kept = keep_two_of_four(packed, scales, torch.tensor(0.03), most_relative_l2_error=1.0)
    dtype = torch.bfloat16 if tokens % 2 else torch.float16
    x = torch.randn(tokens, shape[1], generator=torch.Generator().manual_seed(9)).to(dtype)
    wanted = reference.gemv(x, expand(kept), scales, 0.03)
    got = ops.gemv_2of4(x, kept.values, kept.positions, kept.scales, kept.global_scale)
    rounding = 2.0**-8 if dtype == torch.bfloat16 else 2.0**-11
    assert ((got.double() - wanted).abs() <= rounding * wanted.abs() + 1e-5 * wanted.abs().max()).all()


def test_it_takes_three_and_a_half_bits_a_weight() -> None:
    packed, scales = weight(16, 256)
    kept = keep_two_of_four(packed, scales, ONE, most_relative_l2_error=1.0)
    stored = kept.values.numel() + kept.positions.numel() + kept.scales.numel()
    assert stored * 8 / (16 * 256) == 3.5
