"""FlashInfer's FP4 converters do not compile for plain sm_121 and return 0 before Blackwell; patched, they convert."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.patches.conftest import PatchedFlashInfer
from tests.patches.device_code import DeviceCompiler, count

from sparkwright.pins.model import FileKind

pytestmark = [pytest.mark.sources, pytest.mark.compiles]

REFUSAL = "'cvt with .e2m1x2' not supported on .target"
CONVERT = r"F2FP\.SATFINITE\.E2M1"
ROUND = r"FM?N?MX|VIMNMX"
GUARD = "(__CUDA_ARCH__ >= 1000)"
INTERNAL = "csrc/nv_internal"
UTILS = f"{INTERNAL}/tensorrt_llm/kernels/quantization_utils.cuh"
LAYOUTS: list[tuple[str, FileKind, str]] = [
    ("0.6.3", "sdist", ""),
    ("0.6.3", "wheel-any", "flashinfer/data/"),
    ("0.6.4", "sdist", ""),
]

CONVERTERS = """
#define ENABLE_BF16 1
#include "{utils}"
using tensorrt_llm::kernels::fp32_vec_to_e2m1;
__global__ void eight(float* in, uint32_t* out) {{
  float x[8];
  for (int i = 0; i < 8; ++i) x[i] = in[i];
  *out = fp32_vec_to_e2m1(x);
}}
__global__ void four_pairs(float2* in, uint32_t* out) {{
  float2 x[4];
  for (int i = 0; i < 4; ++i) x[i] = in[i];
  *out = fp32_vec_to_e2m1(x);
}}
__global__ void eight_pairs(float2* in, uint64_t* out) {{
  float2 x[8];
  for (int i = 0; i < 8; ++i) x[i] = in[i];
  *out = fp32_vec_to_e2m1(x);
}}
"""


@pytest.mark.parametrize(("version", "kind", "data"), LAYOUTS)
def test_the_converters_convert_on_every_target(
    version: str,
    kind: FileKind,
    data: str,
    flashinfer_tree: Callable[[str, FileKind], Path],
    patched_flashinfer: PatchedFlashInfer,
    device_compiler: DeviceCompiler,
    tmp_path: Path,
) -> None:
    tree = flashinfer_tree(version, kind)
    headers = [tree / data / INTERNAL, tree / data / INTERNAL / "include", tree / data / "include"]

    def source(folder: Path, name: str) -> Path:
        file = tmp_path / f"{name}.cu"
        file.write_text(CONVERTERS.format(utils=folder / data / UTILS))
        return file

    stock = source(tree, "stock")
    mended = source(patched_flashinfer(version, kind, "e2m1-portable-convert"), "mended")
    assert REFUSAL in device_compiler.refusal(stock, "121", include=headers)
    assert count(device_compiler.sass(stock, "90", include=headers), ROUND) == 0
    for plain in ("121", "90"):
        sass = device_compiler.sass(mended, plain, include=headers)
        assert count(sass, CONVERT) == 0
        assert count(sass, ROUND) >= 32
    for file in (stock, mended):
        assert count(device_compiler.sass(file, "121a", include=headers), CONVERT) == 16


@pytest.mark.parametrize(("version", "kind", "data"), LAYOUTS)
def test_the_eight_other_guards_stay(
    version: str,
    kind: FileKind,
    data: str,
    flashinfer_tree: Callable[[str, FileKind], Path],
    patched_flashinfer: PatchedFlashInfer,
) -> None:
    before = (flashinfer_tree(version, kind) / data / UTILS).read_text()
    after = (patched_flashinfer(version, kind, "e2m1-portable-convert") / data / UTILS).read_text()
    start = "inline __device__ uint32_t elect_one_sync()"
    assert after[after.index(start) :] == before[before.index(start) :]
    assert before[: before.index(start)].count(GUARD) == 3
    assert after[: after.index(start)].count(GUARD) == 0
