#include "nvfp4_quantize/nvfp4_quantize.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "common/launch.cuh"
#include "common/nvfp4.cuh"
#include "common/reciprocal.cuh"
#include "gb10/e2m1.cuh"

// How the work is cut. A thread takes a block of sixteen values: two loads of 16 bytes, one store of 8, and the scale.
// Threads are numbered along the rows of scales, so that a warp reads a kilobyte without gaps. In the tiled layout the
// padding has its threads too, which only store a zero.

namespace sparkwright {
namespace {

constexpr int kThreads = 256;

struct Quantized {
  uint64_t codes;
  uint8_t scale;
};

__device__ __forceinline__ uint8_t to_e4m3(float value) { return __nv_cvt_float_to_fp8(value, __NV_SATFINITE, __NV_E4M3); }

// The larger one; a NaN only if both are.
__device__ __forceinline__ float larger(float a, float b) {
#if defined(__CUDA_ARCH__)
  return fmaxf(a, b);
#else
  return std::isnan(a) || b > a ? b : a;
#endif
}

// In both rules the operations have names, so that neither an option nor a contraction changes a bit.

__device__ __forceinline__ Quantized quantize_as_vllm(const float (&values)[16], float global_scale) {
  float largest = fabsf(values[0]);
#pragma unroll
  for (int i = 1; i < 16; ++i) largest = larger(largest, fabsf(values[i]));
  const uint8_t scale = to_e4m3(__fmul_rn(global_scale, __fmul_rn(largest, reciprocal_approximate_ftz(6.0f))));
  const float value = e4m3_to_float(scale);
  const float multiplier =
      value != 0.0f ? reciprocal_approximate_ftz(__fmul_rn(value, reciprocal_approximate_ftz(global_scale))) : 0.0f;
  float2 scaled[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    scaled[i] = make_float2(__fmul_rn(values[2 * i], multiplier), __fmul_rn(values[2 * i + 1], multiplier));
  }
  return {gb10::float16_to_e2m1(scaled), scale};
}

__device__ __forceinline__ Quantized quantize_as_modelopt(const float (&values)[16], float global_scale) {
  float largest = fabsf(values[0]);
  bool has_nan = values[0] != values[0];
#pragma unroll
  for (int i = 1; i < 16; ++i) {
    largest = larger(largest, fabsf(values[i]));
    has_nan = has_nan || values[i] != values[i];
  }
  // The comparisons let a NaN through.
  float wanted = has_nan ? __uint_as_float(0x7fc00000u) : __fdiv_rn(largest, __fmul_rn(6.0f, global_scale));
  if (wanted == 0.0f) wanted = 1.0f;
  if (wanted < 0.001953125f) wanted = 0.001953125f;
  if (wanted > 448.0f) wanted = 448.0f;
  const uint8_t scale = to_e4m3(wanted);
  const float divisor = __fmul_rn(e4m3_to_float(scale), global_scale);
  float2 scaled[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    // modelopt asks whether a value is less than zero, so that a negative zero becomes a positive one: hence + 0.
    scaled[i] = make_float2(__fadd_rn(__fdiv_rn(values[2 * i], divisor), 0.0f), __fadd_rn(__fdiv_rn(values[2 * i + 1], divisor), 0.0f));
  }
  return {gb10::float16_to_e2m1(scaled), scale};
}

template <typename T>
__global__ void __launch_bounds__(kThreads) quantize_kernel(const Nvfp4Quantize p) {
  const bool tiled = p.layout == ScaleLayout::tiled_128x4;
  const int64_t blocks = p.k / 16;
  const int64_t padded_blocks = tiled ? (blocks + 3) / 4 * 4 : blocks;
  const int64_t padded_rows = tiled ? (p.rows + 127) / 128 * 128 : p.rows;
  const float global_scale = __ldg(p.global_scale);
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < padded_rows * padded_blocks;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int64_t row = i / padded_blocks;
    const int64_t block = i % padded_blocks;
    uint8_t *scale = p.scales + scale_offset(p.layout, row, block, blocks);
    if (row >= p.rows || block >= blocks) {
      *scale = 0;
      continue;
    }
    float values[16];
    load_inputs(static_cast<const T *>(p.x) + row * p.k + block * 16, values);
    const Quantized quantized =
        p.rule == QuantizeRule::vllm ? quantize_as_vllm(values, global_scale) : quantize_as_modelopt(values, global_scale);
    *scale = quantized.scale;
    *reinterpret_cast<uint64_t *>(p.codes + (row * blocks + block) * 8) = quantized.codes;
  }
}

void require(bool holds, const std::string &what) {
  if (!holds) throw std::invalid_argument("nvfp4_quantize: " + what);
}

bool aligned(const void *address, uintptr_t to) { return reinterpret_cast<uintptr_t>(address) % to == 0; }

}  // namespace

void nvfp4_quantize(const Nvfp4Quantize &p, cudaStream_t stream) {
  require(p.rows >= 0, std::to_string(p.rows) + " rows");
  require(p.k > 0 && p.k % 16 == 0, "k = " + std::to_string(p.k) + " is not a positive multiple of 16");
  require(aligned(p.x, 16) && aligned(p.codes, 8), "x or codes does not start at a multiple of 16 or 8 bytes");
  if (p.rows == 0) return;
  const bool tiled = p.layout == ScaleLayout::tiled_128x4;
  const int64_t scales = tiled ? (p.rows + 127) / 128 * 128 * ((p.k / 16 + 3) / 4 * 4) : p.rows * (p.k / 16);
  const auto grid = static_cast<unsigned>(std::min<int64_t>((scales + kThreads - 1) / kThreads, INT32_MAX));
  const auto kernel = p.activation == Activation16::bfloat16 ? quantize_kernel<__nv_bfloat16> : quantize_kernel<__half>;
  launch("nvfp4_quantize", kernel, dim3(grid), dim3(kThreads), 0, stream, p);
}

}  // namespace sparkwright
