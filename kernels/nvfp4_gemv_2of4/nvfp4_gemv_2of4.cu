#include "nvfp4_gemv_2of4/nvfp4_gemv_2of4.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "common/launch.cuh"
#include "common/nvfp4.cuh"

// A warp owns a row. A lane takes `kBlocks` blocks of 16 weights at a time: 4 bytes of codes, 2 of positions and one
// scale each. The two codes of a group are put back into their places, zeros elsewhere, once for all rows of x: a sum
// over four products is then the same as over two, and no register is addressed by a number known only at run time.

namespace sparkwright {
namespace {

constexpr int kWarps = 4;      // in a block
constexpr int kMostTokens = 8;  // in one pass over the weights
constexpr unsigned kAllLanes = 0xffffffffu;

template <typename Word, int kCount>
struct alignas(sizeof(Word) * kCount) Words {
  Word at[kCount];
};

// One load.
template <typename Word, int kCount>
__device__ Words<Word, kCount> load_words(const uint8_t *from) {
  return *reinterpret_cast<const Words<Word, kCount> *>(from);
}

// The sixteen weights of a block, each times CodeDecoder::unit: eight codes, the lowest first, put into their places.
__device__ void expand(uint32_t codes, uint32_t places, float (&weights)[16]) {
  float kept[8];
  CodeDecoder::decode(codes, kept);
#pragma unroll
  for (uint32_t i = 0; i < 16; ++i) {
    const uint32_t group = i / 4;
    const uint32_t earlier = places >> (4 * group) & 3u;
    const uint32_t later = places >> (4 * group + 2) & 3u;
    weights[i] = earlier == i % 4 ? kept[2 * group] : later == i % 4 ? kept[2 * group + 1] : 0.0f;
  }
}

template <typename T, int kTokens, int kBlocks>
__global__ void __launch_bounds__(kWarps * 32) gemv_2of4_kernel(const Gemv2of4 p) {
  const int lane = threadIdx.x % 32;
  const float global_scale = *p.global_scale;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32; row < p.rows;
       row += static_cast<int64_t>(gridDim.x) * kWarps) {
    const uint8_t *values = p.values + row * (p.width / 4);
    const uint8_t *positions = p.positions + row * (p.width / 8);
    const uint8_t *scales = p.scales + row * (p.width / 16);
    float sums[kTokens] = {};
    for (int64_t first = static_cast<int64_t>(lane) * kBlocks; first < p.width / 16; first += 32 * kBlocks) {
      const auto codes = load_words<uint32_t, kBlocks>(values + 4 * first);
      const auto places = load_words<uint16_t, kBlocks>(positions + 2 * first);
      const auto scale_codes = load_words<uint8_t, kBlocks>(scales + first);
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        float weights[16];
        expand(codes.at[block], places.at[block], weights);
        const float scale = e4m3_to_float(scale_codes.at[block]) * (1.0f / CodeDecoder::unit);
#pragma unroll
        for (int token = 0; token < kTokens; ++token) {
          float inputs[16];
          load_inputs(static_cast<const T *>(p.x) + token * p.width + 16 * (first + block), inputs);
          float unscaled = 0.0f;
#pragma unroll
          for (int i = 0; i < 16; ++i) unscaled = fmaf(weights[i], inputs[i], unscaled);
          sums[token] = fmaf(scale, unscaled, sums[token]);
        }
      }
    }
#pragma unroll
    for (int token = 0; token < kTokens; ++token) {
      float sum = sums[token];
      for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(kAllLanes, sum, distance);
      if (lane == 0) store_output(static_cast<T *>(p.out) + token * p.rows + row, sum * global_scale);
    }
  }
}

template <typename T, int kTokens>
void launch_one(const Gemv2of4 &p, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(std::min<int64_t>((p.rows + kWarps - 1) / kWarps, INT32_MAX)));
  const auto kernel = p.width % 64 == 0 ? gemv_2of4_kernel<T, kTokens, 4> : gemv_2of4_kernel<T, kTokens, 1>;
  launch("nvfp4_gemv_2of4", kernel, grid, dim3(kWarps * 32), 0, stream, p);
}

template <typename T>
void launch_all(Gemv2of4 p, cudaStream_t stream) {
  for (; p.tokens > 0; p.tokens -= kMostTokens) {
    switch (std::min<int64_t>(p.tokens, kMostTokens)) {
      case 1: launch_one<T, 1>(p, stream); break;
      case 2: launch_one<T, 2>(p, stream); break;
      case 3: launch_one<T, 3>(p, stream); break;
      case 4: launch_one<T, 4>(p, stream); break;
      case 5: launch_one<T, 5>(p, stream); break;
      case 6: launch_one<T, 6>(p, stream); break;
      case 7: launch_one<T, 7>(p, stream); break;
      default: launch_one<T, 8>(p, stream); break;
    }
    p.x = static_cast<const T *>(p.x) + kMostTokens * p.width;
    p.out = static_cast<T *>(p.out) + kMostTokens * p.rows;
  }
}

}  // namespace

void nvfp4_gemv_2of4(const Gemv2of4 &p, cudaStream_t stream) {
  if (p.rows == 0) return;
  p.activation == Activation16::bfloat16 ? launch_all<__nv_bfloat16>(p, stream) : launch_all<__half>(p, stream);
}

}  // namespace sparkwright
