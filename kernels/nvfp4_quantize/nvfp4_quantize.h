// BF16 or FP16 rows to NVFP4: E2M1 codes, and an E4M3 scale for every sixteen.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "common/types.h"

namespace sparkwright {

// Whose arithmetic is followed, bit for bit. `g` is the global scale as vLLM passes it to scaled_fp4_quant, about
// 448 * 6 / (largest magnitude of x); `g2` is modelopt's weight_scale_2, about its reciprocal.
//
//   vllm      scale = e4m3(g * (largest * rcp(6)));   code = e2m1(x * rcp(scale * rcp(g)));   no block is scaled by zero
//   modelopt  scale = e4m3(clamp(largest / (6 * g2), 2^-9, 448)), 1 for a block of zeros;   code = e2m1(x / (scale * g2))
//
// where rcp is CUDA's approximate reciprocal, everything is float32, and `largest` is the block's largest magnitude.
enum class QuantizeRule : int { vllm = 0, modelopt = 1 };

struct Nvfp4Quantize {
  int64_t rows;
  int64_t k;  // a multiple of 16

  const void *x;              // [rows, k]
  const float *global_scale;  // one, on the device: g or g2, as `rule` says
  uint8_t *codes;             // [rows, k / 2], the lower code first
  // [rows, k / 16], or tiled: [rows rounded up to 128, k / 16 rounded up to 4], where the padding is written as zero.
  uint8_t *scales;

  Activation16 activation;  // of x
  ScaleLayout layout;
  QuantizeRule rule;
};

// Launches on `stream` of the current device. x and codes start at multiples of 16 and 8 bytes.
//
// Throws std::invalid_argument for sizes and addresses that are not as above, and LaunchError.
void nvfp4_quantize(const Nvfp4Quantize &problem, cudaStream_t stream);

}  // namespace sparkwright
