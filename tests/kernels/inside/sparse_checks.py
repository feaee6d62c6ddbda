"""The lossy 2:4 form: what is kept, what is reported, and the kernel that reads it."""

import pytest
import torch  # type: ignore[import-not-found]
from gb10_kernels import ops, reference  # type: ignore[import-not-found]
from gb10_kernels.sparsity import Sparse, TooLossyError, expand, keep_two_of_four  # type: ignore[import-not-found]
from hypothesis import given, settings
from hypothesis import strategies as st

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


def product(x: torch.Tensor, kept: Sparse) -> torch.Tensor:
    return ops.gemv_2of4(x, kept.values, kept.positions, kept.scales, kept.global_scale)


def inputs(tokens: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(tokens, width, generator=torch.Generator().manual_seed(9)).to(dtype)


def check(x: torch.Tensor, kept: Sparse) -> None:
    wanted, got = reference.gemv(x, expand(kept), kept.scales, kept.global_scale), product(x, kept)
    rounding = 2.0**-8 if x.dtype == torch.bfloat16 else 2.0**-11
    # 2^-25: half the distance of float16's smallest numbers.
    bound = rounding * wanted.abs() + 1e-5 * wanted.abs().max() + 2.0**-25
    assert ((got.double() - wanted).abs() <= bound).all()


@pytest.mark.parametrize("tokens", [*range(1, 9), 11])
@pytest.mark.parametrize("shape", [(1, 16), (37, 208), (16, 2112)], ids=str)
def test_the_kernel_computes_with_what_was_kept(tokens: int, shape: tuple[int, int]) -> None:
    packed, scales = weight(*shape, seed=tokens)
    kept = keep_two_of_four(packed, scales, torch.tensor(0.03), most_relative_l2_error=1.0)
    check(inputs(tokens, shape[1], torch.bfloat16 if tokens % 2 else torch.float16), kept)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_weights(data: st.DataObject) -> None:
    tokens, rows, blocks = (data.draw(st.integers(1, most)) for most in (9, 19, 12))
    packed, scales = weight(rows, 16 * blocks, seed=data.draw(st.integers(0, 2**31)))
    kept = keep_two_of_four(packed, scales, torch.tensor(0.03), most_relative_l2_error=1.0)
    check(inputs(tokens, 16 * blocks, data.draw(st.sampled_from([torch.bfloat16, torch.float16]))), kept)


def test_a_one_hot_row_gives_the_kept_weights_exactly() -> None:
    packed, scales = weight(7, 64)
    kept = keep_two_of_four(packed, scales, ONE, most_relative_l2_error=1.0)
    x = torch.eye(64, dtype=torch.float16)[:24]
    wanted = reference.dequantize(expand(kept), scales, 1.0).T[:24]
    assert torch.equal(product(x, kept).double(), wanted)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_are_where_the_reference_has_them(poison: float) -> None:
    packed, scales = weight(9, 96)
    kept = keep_two_of_four(packed, scales, ONE, most_relative_l2_error=1.0)
    kept.scales.view(torch.uint8)[4, 2] = 0x7F
    x = inputs(3, 96, torch.bfloat16)
    x[1, 37] = poison
    wanted, got = reference.gemv(x, expand(kept), kept.scales, ONE), product(x, kept)
    assert torch.equal(got.isnan(), wanted.isnan())
    assert torch.equal(got.isinf(), wanted.isinf())
    assert got[[0, 2]][:, 4].isnan().all()
    assert got[0].isnan().sum() == 1
    assert not got[1].isfinite().all()


def test_a_token_does_not_see_the_others_nor_the_order_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    packed, scales = weight(21, 128)
    kept = keep_two_of_four(packed, scales, ONE, most_relative_l2_error=1.0)
    x = inputs(8, 128, torch.bfloat16)
    together = product(x, kept)
    assert torch.equal(together[5:6], product(x[5:6].clone(), kept))
    assert torch.equal(together[:3], product(x[:3].clone(), kept))
    monkeypatch.setenv("SIMT_ORDER", "random:3")
    assert torch.equal(together, product(x, kept))


def test_beyond_65535_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = 8 * 65_537 + 1  # 2 rows to a warp, 4 warps to a block
    packed, scales = weight(4, 16)
    kept = keep_two_of_four(packed, scales, ONE, most_relative_l2_error=1.0)
    repeats = -(-rows // 4)
    values, positions = (one.repeat(repeats, 1)[:rows].contiguous() for one in (kept.values, kept.positions))
    many = kept.scales.view(torch.uint8).repeat(repeats, 1)[:rows].contiguous().view(torch.float8_e4m3fn)
    x = inputs(1, 16, torch.bfloat16)
    once = product(x, kept)[0]
    monkeypatch.setenv("SIMT_SAMPLE", "2")
    got = ops.gemv_2of4(x, values, positions, many, ONE)[0]
    assert torch.equal(got[:8], once.repeat(2))
    assert got[-1] == once[(rows - 1) % 4]


def test_it_takes_three_and_a_half_bits_a_weight() -> None:
    packed, scales = weight(16, 256)
    kept = keep_two_of_four(packed, scales, ONE, most_relative_l2_error=1.0)
    stored = kept.values.numel() + kept.positions.numel() + kept.scales.numel()
    assert stored * 8 / (16 * 256) == 3.5
