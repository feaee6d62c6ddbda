"""vLLM's NVFP4 quantisers do not compile for a target without a suffix; patched they do, and 12.1a keeps its code."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.patches.conftest import PatchedBuild
from tests.patches.device_code import DeviceCompiler, count

pytestmark = [pytest.mark.sources, pytest.mark.compiles]

NAME = "e2m1-portable-convert"
REFUSAL = "'cvt with .e2m1x2' not supported on .target"
CONVERT = r"F2FP\.SATFINITE\.E2M1"

# The three converters of nvfp4_utils.cuh alone: releases before 0.20 need another torch for the whole file.
CONVERTERS = """
#include <cstdint>
namespace at { struct Half; struct BFloat16; }
#include "quantization/fp4/nvfp4_utils.cuh"
__global__ void eight(float* in, uint32_t* out) {
  float x[8];
  for (int i = 0; i < 8; ++i) x[i] = in[i];
  *out = vllm::fp32_vec8_to_e2m1(x);
}
__global__ void four_pairs(float2* in, uint32_t* out) {
  float2 x[4];
  for (int i = 0; i < 4; ++i) x[i] = in[i];
  *out = vllm::fp32_vec8_to_e2m1(x);
}
__global__ void eight_pairs(float2* in, vllm::u32x2* out) {
  float2 x[8];
  for (int i = 0; i < 8; ++i) x[i] = in[i];
  *out = vllm::fp32_vec16_to_e2m1(x);
}
"""


def test_the_quantisers_of_0_33_compile_for_plain_targets_and_12_1a_keeps_its_converts(
    vllm_tree: Callable[[str], Path], patched_build: PatchedBuild, device_compiler: DeviceCompiler
) -> None:
    stock, mended = vllm_tree("0.33.0") / "csrc", patched_build("0.33.0", [NAME]) / "csrc"
    file = "quantization/fp4/nvfp4_quant_kernels.cu"
    assert REFUSAL in device_compiler.refusal(stock / file, "121", include=[stock])
    plain = device_compiler.sass(mended / file, "121", include=[mended])
    assert count(plain, CONVERT) == 0
    assert count(plain, "PRMT") > count(plain, "EXIT") > 0
    for target in ("121a", "120f"):
        before, after = (device_compiler.sass(csrc / file, target, include=[csrc]) for csrc in (stock, mended))
        assert count(before, CONVERT) == count(after, CONVERT) > 0
        assert count(after, ".") == pytest.approx(count(before, "."), rel=0.01)


@pytest.mark.parametrize("file", ["activation_nvfp4_quant_fusion_kernels.cu", "nvfp4_experts_quant.cu"])
def test_the_other_files_keep_their_converts_too(
    file: str, vllm_tree: Callable[[str], Path], patched_build: PatchedBuild, device_compiler: DeviceCompiler
) -> None:
    folders = [vllm_tree("0.33.0") / "csrc", patched_build("0.33.0", [NAME]) / "csrc"]
    made = [device_compiler.sass(csrc / "quantization/fp4" / file, "121a", include=[csrc]) for csrc in folders]
    converts = [count(sass, CONVERT) for sass in made]
    assert converts[0] == converts[1] > 0


@pytest.mark.parametrize("version", ["0.16.0", "0.24.0", "0.33.0"])
def test_the_converters_compile_everywhere_with_the_hardware_convert_where_it_is(
    version: str,
    vllm_tree: Callable[[str], Path],
    patched_build: PatchedBuild,
    device_compiler: DeviceCompiler,
    tmp_path: Path,
) -> None:
    source = tmp_path / "converters.cu"
    source.write_text(CONVERTERS)

    def folders(tree: Path) -> list[Path]:
        stable = tree / "csrc" / "libtorch_stable"
        return [stable if (stable / "quantization/fp4/nvfp4_utils.cuh").exists() else tree / "csrc"]

    stock, mended = folders(vllm_tree(version)), folders(patched_build(version, [NAME]))
    for plain in ("121", "120", "90"):
        assert REFUSAL in device_compiler.refusal(source, plain, include=stock)
        assert count(device_compiler.sass(source, plain, include=mended), CONVERT) == 0
    for suffixed in ("121a", "120f"):
        for include in (stock, mended):
            assert count(device_compiler.sass(source, suffixed, include=include), CONVERT) == 16
