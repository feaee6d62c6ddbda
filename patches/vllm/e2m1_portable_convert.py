"""Send the float to E2M1 converts of the NVFP4 kernels through cuda_headers/gb10/e2m1.cuh.

nvfp4_utils.cuh names the instruction `cvt.rn.satfinite.e2m1x2.f32` in inline assembly, without a guard. GB10 has the instruction, but
ptxas accepts it only for targets with an `a` or `f` suffix: for plain `sm_121`, and for every GPU before Blackwell, the
quantisation kernels do not compile ("Instruction 'cvt with .e2m1x2' not supported on .target 'sm_121'"). With the header the same
functions use the instruction where the target has it and a short exact rule elsewhere, bit for bit the same result. For
12.1a and 12.0f the machine code holds as many converts as before.

What this does not do: it cannot give a plain target FP4 tensor cores. The GEMMs stay empty there, and a build that used
to fail would now succeed and serve garbage; refuse-plain-sm12x stops that build at configure time and comes first.

The header is copied next to nvfp4_utils.cuh, so that no include path changes.
"""

from sparkwright.patching.model import AddFile, Contains, InsertAfter, Patch, Replace, Variant
from sparkwright.paths import CUDA_HEADERS

_EIGHT_OUTPUTS = """\
      "cvt.rn.satfinite.e2m1x2.f32   byte0, %2, %1;\\n"
      "cvt.rn.satfinite.e2m1x2.f32   byte1, %4, %3;\\n"
      "cvt.rn.satfinite.e2m1x2.f32   byte2, %6, %5;\\n"
      "cvt.rn.satfinite.e2m1x2.f32   byte3, %8, %7;\\n"
      "mov.b32 %0, {byte0, byte1, byte2, byte3};\\n"
"""
_EIGHT_FLOATS = (
    """\
inline __device__ uint32_t fp32_vec8_to_e2m1(float (&array)[8]) {
  uint32_t val;
  asm volatile(
      "{\\n"
      ".reg .b8 byte0;\\n"
      ".reg .b8 byte1;\\n"
      ".reg .b8 byte2;\\n"
      ".reg .b8 byte3;\\n"
"""
    + _EIGHT_OUTPUTS
    + """\
      "}"
      : "=r"(val)
      : "f"(array[0]), "f"(array[1]), "f"(array[2]), "f"(array[3]),
        "f"(array[4]), "f"(array[5]), "f"(array[6]), "f"(array[7]));
  return val;
}
"""
)
_FOUR_PAIRS = (
    """\
__device__ __forceinline__ uint32_t fp32_vec8_to_e2m1(float2 (&array)[4]) {
  uint32_t val;
  asm volatile(
      "{\\n"
      ".reg .b8 byte0;\\n"
      ".reg .b8 byte1;\\n"
      ".reg .b8 byte2;\\n"
      ".reg .b8 byte3;\\n"
"""
    + _EIGHT_OUTPUTS
    + """\
      "}\\n"
      : "=r"(val)
      : "f"(array[0].x), "f"(array[0].y), "f"(array[1].x), "f"(array[1].y),
        "f"(array[2].x), "f"(array[2].y), "f"(array[3].x), "f"(array[3].y));
  return val;
}
"""
)
_EIGHT_PAIRS = """\
__device__ __forceinline__ u32x2 fp32_vec16_to_e2m1(float2 (&array)[8]) {
  u32x2 out;
  asm volatile(
      "{\\n"
      ".reg .b8 b0;\\n"
      ".reg .b8 b1;\\n"
      ".reg .b8 b2;\\n"
      ".reg .b8 b3;\\n"
      ".reg .b8 b4;\\n"
      ".reg .b8 b5;\\n"
      ".reg .b8 b6;\\n"
      ".reg .b8 b7;\\n"
      "cvt.rn.satfinite.e2m1x2.f32   b0,  %3,  %2;\\n"
      "cvt.rn.satfinite.e2m1x2.f32   b1,  %5,  %4;\\n"
      "cvt.rn.satfinite.e2m1x2.f32   b2,  %7,  %6;\\n"
      "cvt.rn.satfinite.e2m1x2.f32   b3,  %9,  %8;\\n"
      "cvt.rn.satfinite.e2m1x2.f32   b4, %11, %10;\\n"
      "cvt.rn.satfinite.e2m1x2.f32   b5, %13, %12;\\n"
      "cvt.rn.satfinite.e2m1x2.f32   b6, %15, %14;\\n"
      "cvt.rn.satfinite.e2m1x2.f32   b7, %17, %16;\\n"
      "mov.b32 %0, {b0, b1, b2, b3};\\n"
      "mov.b32 %1, {b4, b5, b6, b7};\\n"
      "}\\n"
      : "=r"(out.lo), "=r"(out.hi)
      : "f"(array[0].x), "f"(array[0].y), "f"(array[1].x), "f"(array[1].y),
        "f"(array[2].x), "f"(array[2].y), "f"(array[3].x), "f"(array[3].y),
        "f"(array[4].x), "f"(array[4].y), "f"(array[5].x), "f"(array[5].y),
        "f"(array[6].x), "f"(array[6].y), "f"(array[7].x), "f"(array[7].y));
  return out;
}
"""


def _signature(function: str) -> str:
    return function.partition("\n")[0]


def _at(folder: str, releases: str) -> Variant:
    path = f"{folder}/nvfp4_utils.cuh"
    return Variant(
        releases=releases,
        requires=(Contains(path=path, text="cvt.rn.satfinite.e2m1x2.f32", count=16),),
        edits=(
            AddFile(path=f"{folder}/gb10/e2m1.cuh", text=(CUDA_HEADERS / "gb10" / "e2m1.cuh").read_text("utf-8")),
            InsertAfter(
                path=path,
                anchor="#include <cuda_runtime.h>\n#include <cuda_fp8.h>\n",
                text='\n#include "gb10/e2m1.cuh"\n\n',
            ),
            Replace(
                path=path,
                old=_EIGHT_FLOATS,
                new=f"{_signature(_EIGHT_FLOATS)}\n  return gb10::float8_to_e2m1(array);\n}}\n",
            ),
            Replace(
                path=path,
                old=_FOUR_PAIRS,
                new=f"""\
{_signature(_FOUR_PAIRS)}
  const float values[8] = {{array[0].x, array[0].y, array[1].x, array[1].y,
                           array[2].x, array[2].y, array[3].x, array[3].y}};
  return gb10::float8_to_e2m1(values);
}}
""",
            ),
            Replace(
                path=path,
                old=_EIGHT_PAIRS,
                new=f"""\
{_signature(_EIGHT_PAIRS)}
  const float low[8] = {{array[0].x, array[0].y, array[1].x, array[1].y,
                        array[2].x, array[2].y, array[3].x, array[3].y}};
  const float high[8] = {{array[4].x, array[4].y, array[5].x, array[5].y,
                         array[6].x, array[6].y, array[7].x, array[7].y}};
  return {{gb10::float8_to_e2m1(low), gb10::float8_to_e2m1(high)}};
}}
""",
            ),
        ),
    )


PATCH = Patch(
    title="the NVFP4 quantisers name an instruction in inline assembly that a target without a suffix lacks",
    releases="",
    kind="native",
    category="deliberate",
    reference="csrc/quantization/fp4/nvfp4_utils.cuh (0.33.0: lines 70-154); vLLM pull requests 35947 and 37725",
    remove_when="nvfp4_utils.cuh guards its converts by __CUDA_ARCH_FAMILY_SPECIFIC__ or uses CUDA's cuda_fp4.h",
    guarded_by="tests/patches/test_e2m1_portable_convert.py",
    objects=("**/quantization/fp4/*.cu.o", "**/nvfp4_kv_cache_kernels.cu.o", "**/nvfp4_ds_mla_cache_kernels.cu.o"),
    after=("refuse-plain-sm12x",),
    variants=(
        _at("csrc/quantization/fp4", "<0.20"),
        _at("csrc/libtorch_stable/quantization/fp4", ">=0.20,<0.32"),
        _at("csrc/quantization/fp4", ">=0.32"),
    ),
)
