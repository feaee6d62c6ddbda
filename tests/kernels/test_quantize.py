"""nvfp4_quantize gives the bits of vLLM's rule and of modelopt's, on the CPU."""

from typing import Final

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.kernels.launchers import DTYPES, Array, Launchers, RefusedError, environment
from tests.kernels.reference import dequantize, quantize_as_modelopt, quantize_as_vllm, tile, unpack

pytestmark = pytest.mark.compiles

RULES: Final = {"vllm": quantize_as_vllm, "modelopt": quantize_as_modelopt}
TINY: Final = settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])


def global_scale_for(x: Array, rule: str) -> float:
    largest = float(np.nanmax(np.abs(np.where(np.isfinite(x.astype(np.float32)), x.astype(np.float32), 0))))
    return 448 * 6 / largest if rule == "vllm" else largest / (448 * 6)


def normal(seed: int, rows: int, k: int, dtype: str) -> Array:
    random = np.random.default_rng(seed)
    spread = np.exp2(random.integers(-6, 3, (rows, k // 16, 1)))
    return (random.normal(size=(rows, k // 16, 16)) * spread).reshape(rows, k).astype(np.float32).astype(DTYPES[dtype])


def check(launchers: Launchers, x: Array, global_scale: float, rule: str) -> None:
    codes, scales = RULES[rule](x, global_scale)
    for layout, arranged in (("linear", scales), ("tiled", tile(scales))):
        made_codes, made_scales = launchers.quantize(x, global_scale, layout=layout, rule=rule)
        np.testing.assert_array_equal(made_scales, arranged)
        np.testing.assert_array_equal(made_codes, codes)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 16), (1, 64), (3, 48), (17, 528), (127, 32), (128, 64), (129, 80), (260, 16)])
def test_every_shape(launchers: Launchers, shape: tuple[int, int], dtype: str, rule: str) -> None:
    x = normal(shape[0] * shape[1], *shape, dtype)
    check(launchers, x, global_scale_for(x, rule), rule)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_16_bit_number_in_every_kind_of_block(launchers: Launchers, dtype: str, rule: str) -> None:
    numbers = np.arange(65536, dtype=np.uint16).view(DTYPES[dtype])
    alike = numbers.reshape(-1, 256)  # neighbours are of one size, NaN among NaN
    mixed = np.random.default_rng(1).permutation(numbers).reshape(-1, 256)
    for x in (alike, mixed):
        for global_scale in (1.0, 0.0078, 133.3, 2.0**-30, 2.0**40):
            check(launchers, x, global_scale, rule)


@TINY
@given(data=st.data())
def test_any_numbers(launchers: Launchers, data: st.DataObject) -> None:
    rows, blocks = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 9))
    words = data.draw(st.lists(st.integers(0, 65535), min_size=16, max_size=16))
    dtype = DTYPES[data.draw(st.sampled_from(sorted(DTYPES)))]
    x = np.resize(np.array(words, np.uint16), (rows, 16 * blocks)).view(dtype)
    rule = data.draw(st.sampled_from(sorted(RULES)))
    check(launchers, x, data.draw(st.floats(2.0**-40, 2.0**40, width=32)), rule)


@pytest.mark.parametrize("rule", RULES)
def test_special_values(launchers: Launchers, rule: str) -> None:
    bfloat16 = DTYPES["bfloat16"]
    for values in (
        [0.0] * 16,
        [-0.0] * 16,
        [np.nan] * 16,
        [np.nan, *([1.0] * 15)],
        [*([1.0] * 15), np.nan],
        [np.inf, -np.inf, *([-1.0] * 14)],
        [1e-40, -1e-40] * 8,
        [3e38, -3e38] * 8,
        [6.0, 5.0, 3.5, 2.5, 1.75, 1.25, 0.75, 0.25, -6.0, -5.0, -3.5, -2.5, -1.75, -1.25, -0.75, -0.25],
    ):
        x = np.array([values], np.float32).astype(bfloat16)
        for global_scale in (1.0, 448.0, 1e-3):
            check(launchers, x, global_scale, rule)


@pytest.mark.parametrize("rule", RULES)
def test_what_comes_back_is_near_what_went_in(launchers: Launchers, rule: str) -> None:
    x = normal(5, 64, 256, "bfloat16")
    global_scale = global_scale_for(x, rule)
    codes, scales = launchers.quantize(x, global_scale, rule=rule)
    factor = 1 / global_scale if rule == "vllm" else global_scale
    values = x.astype(np.float64).reshape(64, -1, 16)
    error = np.abs(dequantize(codes, scales).reshape(values.shape) * factor - values)
    # Half the widest step (4 to 6) of a scale that may be off by a sixteenth, and what a scale below 2^-6 adds.
    assert (error <= np.abs(values).max(-1, keepdims=True) * (1 / 6 + 1 / 16) + factor * 2.0**-9 * 6).all()


def test_where_the_two_rules_differ(launchers: Launchers) -> None:
    bfloat16 = DTYPES["bfloat16"]
    zeros = np.zeros((1, 16), bfloat16)
    assert launchers.quantize(zeros, 1.0, rule="vllm")[1][0, 0] == 0
    assert launchers.quantize(zeros, 1.0, rule="modelopt")[1][0, 0] == 0x38  # 1.0
    tiny = np.full((1, 16), 2.0**-14, np.float32).astype(bfloat16)
    codes, scale = launchers.quantize(tiny, 1.0, rule="vllm")
    assert (scale[0, 0], int(codes.max())) == (0, 0)  # the scale underflows, and the block is lost
    assert launchers.quantize(tiny, 1.0, rule="modelopt")[1][0, 0] == 1  # the smallest scale, 2^-9
    negative_zero = np.array([[-0.0, *([1.0] * 15)]], np.float32).astype(bfloat16)
    assert unpack(launchers.quantize(negative_zero, 1.0, rule="vllm")[0])[0, 0] == 8
    assert unpack(launchers.quantize(negative_zero, 1.0, rule="modelopt")[0])[0, 0] == 0
    one_nan = np.array([[np.nan, *([1.0] * 15)]], np.float32).astype(bfloat16)
    assert launchers.quantize(one_nan, 1.0, rule="vllm")[1][0, 0] != 0x7F  # the others keep their values
    assert launchers.quantize(one_nan, 1.0, rule="modelopt")[1][0, 0] == 0x7F
    # Elsewhere the arithmetic differs by an ulp of float32, which shows at a tie only.
    x = normal(9, 512, 512, "bfloat16")
    g = np.float32(2.0**12)  # its reciprocal is exact, so that both rules are told the same
    vllm, modelopt = (
        launchers.quantize(x, s, rule=rule) for s, rule in ((float(g), "vllm"), (float(1 / g), "modelopt"))
    )
    assert np.count_nonzero(vllm[1] != modelopt[1]) <= 0.01 * vllm[1].size
    assert np.count_nonzero(vllm[0] != modelopt[0]) <= 0.01 * vllm[0].size


def test_padding_beyond_65535_blocks(launchers: Launchers) -> None:
    # Rows enough for 2^17 blocks of threads; the first and the last run.
    x = np.zeros(((1 << 20) + 3, 512), DTYPES["bfloat16"])
    x[-3:] = normal(3, 3, 512, "bfloat16")
    with environment("SIMT_SAMPLE", "2"):
        codes, scales = launchers.quantize(x, 100.0)
    expected_codes, expected_scales = quantize_as_vllm(x[-3:], 100.0)
    np.testing.assert_array_equal(codes[-3:], expected_codes)
    np.testing.assert_array_equal(scales[-3:], expected_scales)


def test_what_it_does_not_take_it_refuses(launchers: Launchers) -> None:
    with pytest.raises(RefusedError, match="k = 24 is not a positive multiple of 16"):
        launchers.quantize(np.zeros((1, 24), DTYPES["bfloat16"]), 1.0)
    assert launchers.quantize(np.zeros((0, 32), DTYPES["bfloat16"]), 1.0)[0].shape == (0, 16)
