"""nvfp4_gemv against float64, on the CPU: every shape, layout, convention and special value that it takes."""

from typing import Final

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.kernels.launchers import DTYPES, Array, Launchers, RefusedError, aligned, environment, in_aligned
from tests.kernels.reference import E2M1_VALUES, E4M3, dequantize, gemv, pack, tile, unpack

pytestmark = pytest.mark.compiles

NAN: Final = 0x7F
TINY: Final = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


def problem(seed: int, rows: int, n: int, k: int, dtype: str = "bfloat16") -> tuple[Array, Array, Array]:
    """x, packed codes and linear scales' bytes, all of them arbitrary but for NaN."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, k)).astype(np.float32).astype(DTYPES[dtype])
    weight = random.integers(0, 256, (n, k // 2), np.uint8)
    scale = random.integers(0, 0x7F, (n, k // 16)).astype(np.uint8)
    return x, weight, scale


def check(y: Array, expected: tuple[Array, Array]) -> None:
    reference, bound = expected
    assert np.isfinite(reference).all()
    difference = np.abs(y.astype(np.float64) - reference)
    assert (difference <= bound).all(), f"off by up to {(difference / bound).max():.1f} times the bound"


def run(
    launchers: Launchers,
    x: Array,
    weight: Array,
    scale: Array,
    global_scale: float,
    *,
    layout: str = "linear",
    divides: bool = False,
) -> Array:
    """The kernel on linear scales, which are brought into the layout; padding holds NaN, so that reading it shows."""
    arranged = tile(scale, fill=NAN) if layout == "tiled" else scale
    return launchers.gemv(x, in_aligned(weight), in_aligned(arranged), global_scale, layout=layout, divides=divides)


# Inner lengths around a lane's 16 and 32, a warp's 512 and 1024, and the tiles of x; row counts around 4, 32 and 128.
SHAPES: Final = [
    *((m, 5, 16) for m in range(1, 9)),
    *((m, 37, 1040) for m in (1, 2, 3, 8)),
    *((2, n, 64) for n in (1, 3, 4, 31, 32, 33, 127, 128, 129, 200)),
    *((1, 6, k) for k in (32, 48, 496, 512, 528, 992, 1008, 1024, 1056, 2032, 2048, 2080, 4112, 8192, 9216)),
    *((8, 6, k) for k in (992, 1024, 2048, 2064, 3072, 4128)),
    *((4, 6, k) for k in (2048, 4128)),
]


@pytest.mark.parametrize("layout", ["linear", "tiled"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_shape(launchers: Launchers, shape: tuple[int, int, int], layout: str) -> None:
    m, n, k = shape
    x, weight, scale = problem(m * n * k, m, n, k)
    check(run(launchers, x, weight, scale, 0.01, layout=layout), gemv(x, weight, scale, 0.01))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("divides", [False, True], ids=["multiplies", "divides"])
def test_both_types_and_both_conventions(launchers: Launchers, dtype: str, divides: bool) -> None:
    x, weight, scale = problem(7, 3, 9, 1120, dtype)
    given_scale = 384.7 if divides else 0.0026
    y = run(launchers, x, weight, scale, given_scale, divides=divides)
    assert y.dtype == DTYPES[dtype]
    check(y, gemv(x, weight, scale, given_scale, divides=divides))


def test_enough_rows_that_one_warp_takes_a_row_alone(launchers: Launchers) -> None:
    x, weight, scale = problem(8, 1, 8195, 2048)
    with environment("SIMT_SAMPLE", "3"):
        y = run(launchers, x, weight, scale, 0.01)
    ends = np.r_[0:32, 8192:8195]
    check(y[:, ends], gemv(x, weight[ends], scale[ends], 0.01))


@TINY
@given(data=st.data())
def test_any_problem(launchers: Launchers, data: st.DataObject) -> None:
    m = data.draw(st.integers(1, 8))
    n = data.draw(st.integers(1, 140))
    k = 16 * data.draw(st.integers(1, 140))
    dtype = data.draw(st.sampled_from(sorted(DTYPES)))
    layout = data.draw(st.sampled_from(["linear", "tiled"]))
    divides = data.draw(st.booleans())
    global_scale = data.draw(st.floats(2.0**-20, 1.0))
    x, weight, scale = problem(data.draw(st.integers(0, 1 << 30)), m, n, k, dtype)
    scale = np.minimum(scale, np.uint8(0x50))  # so that FP16 holds the results
    y = run(launchers, x, weight, scale, 1 / global_scale if divides else global_scale, layout=layout, divides=divides)
    check(y, gemv(x, weight, scale, 1 / global_scale if divides else global_scale, divides=divides))


# What the numbers mean.


def test_each_code_under_each_scale_gives_its_exact_value(launchers: Launchers) -> None:
    weight = np.tile(pack(np.arange(16, dtype=np.uint8)), (256, 1))
    scale = np.arange(256, dtype=np.uint8)[:, None]
    expected = dequantize(weight, scale)
    for first in (0, 8):
        x = np.eye(16, dtype=np.float32)[first : first + 8].astype(DTYPES["bfloat16"])
        for layout in ("linear", "tiled"):
            y = run(launchers, x, weight, scale, 1.0, layout=layout).astype(np.float64)
            np.testing.assert_array_equal(y, expected[:, first : first + 8].T)


@TINY
@given(data=st.data())
def test_a_one_hot_row_gives_the_dequantized_weights_exactly(launchers: Launchers, data: st.DataObject) -> None:
    k = 16 * data.draw(st.integers(1, 200))
    n = data.draw(st.integers(1, 40))
    place = data.draw(st.integers(0, k - 1))
    layout = data.draw(st.sampled_from(["linear", "tiled"]))
    _, weight, scale = problem(data.draw(st.integers(0, 1 << 30)), 1, n, k)
    x = np.zeros((1, k), DTYPES["float16"])
    x[0, place] = 1
    y = run(launchers, x, weight, scale, 0.5, layout=layout)
    np.testing.assert_array_equal(y[0].astype(np.float64), dequantize(weight, scale)[:, place] / 2)


@TINY
@given(data=st.data())
def test_it_is_linear_where_the_arithmetic_is_exact(launchers: Launchers, data: st.DataObject) -> None:
    # Small integers, powers of two for scales: every sum is exact in float32 and every result in FP16.
    k = 16 * data.draw(st.integers(1, 16))
    random = np.random.default_rng(data.draw(st.integers(0, 1 << 30)))
    weight = random.integers(0, 256, (17, k // 2), np.uint8) & 0x99  # 0, 0.5, -0, -0.5
    scale = random.choice(np.array([0x38, 0x40], np.uint8), (17, k // 16))
    a, b = random.integers(-2, 3, (2, k)).astype(DTYPES["float16"])
    y = run(launchers, np.stack((a, b, a + b, -2 * a)), weight, scale, 1.0).astype(np.float64)
    np.testing.assert_array_equal(y[2], y[0] + y[1])
    np.testing.assert_array_equal(y[3], -2 * y[0])


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_spread_as_in_the_reference(launchers: Launchers, special: float) -> None:
    x, weight, scale = problem(11, 3, 40, 1072)
    x[1, 1060] = special
    scale[5, 2] = 0  # infinity times zero
    scale[6, 3] = NAN
    for layout in ("linear", "tiled"):
        y = run(launchers, x, weight, scale, 1.0, layout=layout).astype(np.float64)
        reference, _ = gemv(x, weight, scale, 1.0)
        np.testing.assert_array_equal(np.isnan(y), np.isnan(reference))
        infinite = np.isinf(reference)
        np.testing.assert_array_equal(y[infinite], reference[infinite])
        assert np.isfinite(y[~np.isnan(reference) & ~infinite]).all()
        assert np.isnan(y[:, 6]).all()
        assert np.isfinite(y[0, 7])


def test_a_result_beyond_fp16_is_infinite(launchers: Launchers) -> None:
    weight, scale = np.full((1, 8), 0x77, np.uint8), np.full((1, 1), 0x7E, np.uint8)
    x = np.full((1, 16), 100, DTYPES["float16"])
    assert np.isposinf(run(launchers, x, weight, scale, 1.0).astype(np.float64)).all()


def test_a_row_does_not_depend_on_its_neighbours_nor_on_their_number(launchers: Launchers) -> None:
    x, weight, scale = problem(12, 8, 45, 2160)
    for layout in ("linear", "tiled"):
        together = run(launchers, x, weight, scale, 0.37, layout=layout)
        for rows in (1, 2, 3, 4):
            some = run(launchers, x[8 - rows :], weight, scale, 0.37, layout=layout)
            np.testing.assert_array_equal(some.view(np.uint16), together[8 - rows :].view(np.uint16))


@pytest.mark.parametrize("order", ["descending", "random:5"])
@pytest.mark.parametrize("layout", ["linear", "tiled"])
def test_the_result_does_not_depend_on_the_order_of_threads(launchers: Launchers, order: str, layout: str) -> None:
    x, weight, scale = problem(13, 5, 70, 4128)
    once = run(launchers, x, weight, scale, 1.0, layout=layout)
    with environment("SIMT_ORDER", order):
        again = run(launchers, x, weight, scale, 1.0, layout=layout)
    np.testing.assert_array_equal(once.view(np.uint16), again.view(np.uint16))


def test_padded_rows_of_weights_and_scales(launchers: Launchers) -> None:
    # As vLLM pads for its own GEMM: K and N rounded up, with bytes that must not count.
    x, weight, scale = problem(14, 2, 33, 1040)
    for pitch in (528, 536, 544):
        padded = np.full((40, pitch), 0x77, np.uint8)
        padded[:33, :520] = weight
        for blocks in (65, 66, 68):
            scales = np.full((40, blocks), NAN, np.uint8)
            scales[:33, :65] = scale
            for layout, arranged in (("linear", scales), ("tiled", tile(scales, fill=NAN))):
                y = launchers.gemv(
                    x, in_aligned(padded), in_aligned(arranged), 0.1, n=33, layout=layout, scale_blocks=blocks
                )
                check(y, gemv(x, weight, scale, 0.1))


def test_beyond_65535_blocks_and_two_gigabytes(launchers: Launchers) -> None:
    # Memory that is never touched is never there; of the blocks a few run.
    n, k = (1 << 28) + 77, 16
    weight, scale = aligned((n, 8), np.dtype(np.uint8)), aligned((n, 1), np.dtype(np.uint8))
    y = aligned((1, n), DTYPES["bfloat16"])
    x, last, last_scale = problem(15, 1, 77, k)
    weight[-77:], scale[-77:] = last, last_scale
    with environment("SIMT_SAMPLE", "2"):
        launchers.gemv(x, weight, scale, 1.0, out=y)
    covered = (n - 1) % 32 + 1
    expected, bound = gemv(x, last, last_scale, 1.0)
    check(y[:, -covered:], (expected[:, -covered:], bound[:, -covered:]))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"rows": 9}, "9 rows of x; it takes 1 to 8"),
        ({"rows": 0}, "0 rows of x"),
        ({"k": 24}, "k = 24 is not a positive multiple of 16"),
        ({"pitch": 7}, "pitch of 7 bytes"),
        ({"pitch": 12}, "pitch of 12 bytes"),
        ({"blocks": 0}, "0 scales to a row"),
        ({"shift": 8}, "multiple of 16 bytes"),
    ],
)
def test_what_it_does_not_take_it_refuses(launchers: Launchers, change: dict[str, int], complaint: str) -> None:
    k, pitch = change.get("k", 16), change.get("pitch", change.get("k", 16) // 2)
    x = np.zeros((change.get("rows", 1), k), DTYPES["bfloat16"])
    weight = (
        aligned((4, pitch + 2), np.dtype(np.uint8))[:, :pitch]
        if pitch == 7
        else aligned((4, pitch), np.dtype(np.uint8))
    )
    scale = aligned((64, 1), np.dtype(np.uint8))[change.get("shift", 0) :]
    with pytest.raises(RefusedError, match=complaint):
        launchers.gemv(x, weight, scale, 1.0, scale_blocks=change.get("blocks", 1))


def test_no_rows_of_weights_is_no_work(launchers: Launchers) -> None:
    x, nothing = np.zeros((1, 16), DTYPES["bfloat16"]), aligned((16, 8), np.dtype(np.uint8))
    assert launchers.gemv(x, nothing, nothing, 1.0, n=0).shape == (1, 0)


# The decoders: each target takes one of them, and all are exact.


@pytest.mark.parametrize("decoder", [0, 1, 2], ids=["by_bits", "by_e4m3", "by_e2m1"])
def test_every_word_of_codes_decodes_exactly(launchers: Launchers, decoder: int) -> None:
    words = np.arange(65536, dtype=np.uint16).view(np.uint8).reshape(-1, 2)
    expected = E2M1_VALUES[unpack(words)].astype(np.float32)
    decoded = launchers.decoded(decoder)
    np.testing.assert_array_equal(decoded[:, :4].view(np.uint32), expected.view(np.uint32))
    np.testing.assert_array_equal(decoded[:, 4:].view(np.uint32), expected.view(np.uint32))


def test_every_scale_decodes_exactly(launchers: Launchers) -> None:
    expected = np.arange(256, dtype=np.uint8).view(E4M3).astype(np.float32)
    decoded = launchers.decoded_scales()
    np.testing.assert_array_equal(np.isnan(decoded), np.isnan(expected))
    numbers = ~np.isnan(expected)
    np.testing.assert_array_equal(decoded[numbers].view(np.uint32), expected[numbers].view(np.uint32))
