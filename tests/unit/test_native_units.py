"""A unit knows its objects, and notices when upstream moved one away."""

import pytest

from sparkwright.errors import ConfigurationError, UsageError
from sparkwright.native.units import Unit, unit

STABLE = "CMakeFiles/_C_stable_libtorch.dir/csrc/"
OBJECTS = (
    f"{STABLE}quantization/fp4/nvfp4_quant_kernels.cu.o",
    f"{STABLE}quantization/w8a8/fp8/common.cu.o",
    f"{STABLE}quantization/w8a8/cutlass/c3x/scaled_mm_sm120_fp8.cu.o",
    f"{STABLE}nvfp4_kv_cache_kernels.cu.o",
    f"{STABLE}quantization/marlin/sm80_kernel_bfloat16_fe2m1f_bfloat16.cu.o",
    f"{STABLE}quantization/marlin/marlin.cu.o",
    f"{STABLE}quantization/marlin/gptq_marlin_repack.cu.o",
    "CMakeFiles/_moe_C_stable_libtorch.dir/csrc/moe/marlin_moe_wna16/sm80_kernel_float16_fe2m1f_float16.cu.o",
    "CMakeFiles/_moe_C_stable_libtorch.dir/csrc/moe/marlin_moe_wna16/ops.cu.o",
)
OTHERS = (
    f"{STABLE}quantization/marlin/sm80_kernel_bfloat16_u4_bfloat16.cu.o",
    f"{STABLE}quantization/w8a8/int8/scaled_quant.cu.o",
    f"{STABLE}torch_bindings.cpp.o",
)


def test_nvfp4_takes_the_fp4_and_fp8_objects_and_the_marlin_ones_for_fp4() -> None:
    assert unit("nvfp4").select(OBJECTS + OTHERS) == OBJECTS


def test_native_takes_all() -> None:
    assert unit("native").select(OBJECTS + OTHERS) == OBJECTS + OTHERS


@pytest.mark.parametrize("missing", OBJECTS)
def test_an_object_that_upstream_moved_is_noticed(missing: str) -> None:
    with pytest.raises(ConfigurationError, match="no object matches"):
        unit("nvfp4").select([name for name in OBJECTS + OTHERS if name != missing])


def test_an_unknown_unit_is_a_usage_error_that_names_the_known_ones() -> None:
    with pytest.raises(UsageError) as caught:
        unit("fp4")
    assert "nvfp4, smoke, native" in caught.value.remedy


def test_a_unit_without_a_match_is_refused() -> None:
    with pytest.raises(ConfigurationError):
        Unit(name="x", objects=("*.nothing",), libraries=False).select(OBJECTS)
