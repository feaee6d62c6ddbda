"""Send FlashInfer's float to E2M1 converters through cuda_headers/gb10/e2m1.cuh.

The three `fp32_vec_to_e2m1` of quantization_utils.cuh guard the instruction `cvt.rn.satfinite.e2m1x2.f32` by `__CUDA_ARCH__ >= 1000`. That is
right for `sm_121a`, but says nothing about the suffix: for plain `sm_121` ptxas refuses the file, and below 1000 the
converters silently return 0. With the header they use the instruction where the target has it and an exact rule elsewhere.

Only the converters change. The file holds eight more guards of the same form around whole kernels' bodies. They are right, and
replacing them as well (as a predecessor of this project did) turns those bodies into `return 0` on GB10: a quantiser that
answers zeros and reports success.

0.7 and later never compile for a target without a suffix (see jit-arch-suffix), so the converters are left alone there.
"""

from sparkwright.patching.model import AddFile, Because, Contains, InsertAfter, Patch, Replace, Variant
from sparkwright.paths import CUDA_HEADERS

_KERNELS = "csrc/nv_internal/tensorrt_llm/kernels"
_REFUSED = """\
#else
  // static_assert(false, "not supported.");
  return 0;
#endif
}
"""
_EIGHT_OUTPUTS = """\
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ >= 1000)
  uint32_t val;
  asm volatile(
      "{\\n"
      ".reg .b8 byte0;\\n"
      ".reg .b8 byte1;\\n"
      ".reg .b8 byte2;\\n"
      ".reg .b8 byte3;\\n"
      "cvt.rn.satfinite.e2m1x2.f32   byte0, %2, %1;\\n"
      "cvt.rn.satfinite.e2m1x2.f32   byte1, %4, %3;\\n"
      "cvt.rn.satfinite.e2m1x2.f32   byte2, %6, %5;\\n"
      "cvt.rn.satfinite.e2m1x2.f32   byte3, %8, %7;\\n"
      "mov.b32 %0, {byte0, byte1, byte2, byte3};\\n"
      "}"
      : "=r"(val)
"""
_EIGHT_FLOATS = (
    "inline __device__ uint32_t fp32_vec_to_e2m1(float (&array)[8]) {\n"
    + _EIGHT_OUTPUTS
    + """\
      : "f"(array[0]), "f"(array[1]), "f"(array[2]), "f"(array[3]), "f"(array[4]), "f"(array[5]),
        "f"(array[6]), "f"(array[7]));
  return val;
"""
    + _REFUSED
)
_FOUR_PAIRS = (
    "inline __device__ uint32_t fp32_vec_to_e2m1(float2 (&array)[4]) {\n"
    + _EIGHT_OUTPUTS
    + """\
      : "f"(array[0].x), "f"(array[0].y), "f"(array[1].x), "f"(array[1].y), "f"(array[2].x),
        "f"(array[2].y), "f"(array[3].x), "f"(array[3].y));
  return val;
"""
    + _REFUSED
)
_EIGHT_PAIRS = (
    """\
inline __device__ uint64_t fp32_vec_to_e2m1(float2 (&array)[8]) {
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ >= 1000)
  uint64_t val;
  asm volatile(
      "{\\n"
      ".reg .b8 byte0;\\n"
      ".reg .b8 byte1;\\n"
      ".reg .b8 byte2;\\n"
      ".reg .b8 byte3;\\n"
      ".reg .b8 byte4;\\n"
      ".reg .b8 byte5;\\n"
      ".reg .b8 byte6;\\n"
      ".reg .b8 byte7;\\n"
      ".reg .b32 val0;\\n"
      ".reg .b32 val1;\\n"
      "cvt.rn.satfinite.e2m1x2.f32   byte0,  %2,  %1;\\n"
      "cvt.rn.satfinite.e2m1x2.f32   byte1,  %4,  %3;\\n"
      "cvt.rn.satfinite.e2m1x2.f32   byte2,  %6,  %5;\\n"
      "cvt.rn.satfinite.e2m1x2.f32   byte3,  %8,  %7;\\n"
      "cvt.rn.satfinite.e2m1x2.f32   byte4, %10,  %9;\\n"
      "cvt.rn.satfinite.e2m1x2.f32   byte5, %12, %11;\\n"
      "cvt.rn.satfinite.e2m1x2.f32   byte6, %14, %13;\\n"
      "cvt.rn.satfinite.e2m1x2.f32   byte7, %16, %15;\\n"
      "mov.b32 val0, {byte0, byte1, byte2, byte3};\\n"
      "mov.b32 val1, {byte4, byte5, byte6, byte7};\\n"
      "mov.b64 %0, {val0, val1};\\n"
      "}"
      : "=l"(val)
      : "f"(array[0].x), "f"(array[0].y), "f"(array[1].x), "f"(array[1].y), "f"(array[2].x),
        "f"(array[2].y), "f"(array[3].x), "f"(array[3].y), "f"(array[4].x), "f"(array[4].y),
        "f"(array[5].x), "f"(array[5].y), "f"(array[6].x), "f"(array[6].y), "f"(array[7].x),
        "f"(array[7].y));
  return val;
"""
    + _REFUSED
)


def _signature(function: str) -> str:
    return function.partition("\n")[0]


def _below(data: str) -> Variant:
    folder = f"{data}{_KERNELS}"
    path = f"{folder}/quantization_utils.cuh"
    return Variant(
        edits=(
            AddFile(path=f"{folder}/gb10/e2m1.cuh", text=(CUDA_HEADERS / "gb10" / "e2m1.cuh").read_text("utf-8")),
            InsertAfter(
                path=path,
                anchor='#include "tensorrt_llm/kernels/quantization.h"\n',
                text='#include "gb10/e2m1.cuh"\n',
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
  float const values[8] = {{array[0].x, array[0].y, array[1].x, array[1].y,
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
  float const low[8] = {{array[0].x, array[0].y, array[1].x, array[1].y,
                        array[2].x, array[2].y, array[3].x, array[3].y}};
  float const high[8] = {{array[4].x, array[4].y, array[5].x, array[5].y,
                         array[6].x, array[6].y, array[7].x, array[7].y}};
  return static_cast<uint64_t>(gb10::float8_to_e2m1(high)) << 32 | gb10::float8_to_e2m1(low);
}}
""",
            ),
        ),
    )


PATCH = Patch(
    title="the FP4 converters do not compile for a target without a suffix, and return 0 before Blackwell",
    releases="<0.7",
    kind="native",
    category="deliberate",
    reference=f"{_KERNELS}/quantization_utils.cuh (0.6.3: lines 113-203)",
    remove_when="no pinned release is older than 0.7",
    guarded_by="tests/patches/test_flashinfer_e2m1_portable_convert.py",
    objects=("**/fp4_quantization*/*.o", "**/fused_moe*/*.o", "**/trtllm_*/*.o"),
    variants=(_below(""), _below("flashinfer/data/")),
    not_applicable=(
        Because(
            signs=(
                Contains(
                    path="flashinfer/compilation_context.py", text="def _normalize_cuda_arch(major: int, minor: int)"
                ),
            ),
            why="its JIT gives every architecture the suffix with which the converters compile",
            releases=">=0.7",
        ),
    ),
)
