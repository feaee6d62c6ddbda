#include "nvfp4_gemv_2of4/nvfp4_gemv_2of4.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "common/launch.cuh"
#include "common/nvfp4.cuh"

// How the work is cut. A warp owns two rows of W, so that what is loaded of x and made a float is used twice. A lane
// takes `kBlocks` blocks of 16 weights of each row at a time: 4 bytes of codes, 2 of positions and one scale each. The two
// codes of a group are put back into their places, zeros elsewhere, once for all rows of x: a sum over four products is
// then the same as over two, and no register is addressed by a number known only at run time.

namespace sparkwright {
namespace {

constexpr int kWarps = 4;       // in a block
constexpr int kRows = 2;        // of W to a warp
constexpr int kMostTokens = 8;  // in one pass over the weights
constexpr unsigned kAllLanes = 0xffffffffu;

// What a lane holds of a row: codes and positions of each block, and their scales, the first lowest.
template <int kBlocks>
struct Stored {
  uint32_t codes[kBlocks];
  uint32_t places[kBlocks];  // in the low half
  uint32_t scales;
};

template <int kBlocks>
__device__ __forceinline__ Stored<kBlocks> load_stored(const Gemv2of4 &p, int64_t row, int64_t first) {
  const int64_t block = row * (p.width / 16) + first;
  Stored<kBlocks> stored;
  if constexpr (kBlocks == 4) {
    const Packed<32> codes = load_packed<32>(p.values + 4 * block);
    const Packed<16> places = load_packed<16>(p.positions + 2 * block);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      stored.codes[i] = codes.words[i];
      stored.places[i] = places.words[i / 2] >> (16 * (i % 2));
    }
    stored.scales = __ldg(reinterpret_cast<const uint32_t *>(p.scales + block));
  } else {
    static_assert(kBlocks == 1);
    stored.codes[0] = __ldg(reinterpret_cast<const uint32_t *>(p.values + 4 * block));
    stored.places[0] = __ldg(reinterpret_cast<const uint16_t *>(p.positions + 2 * block));
    stored.scales = __ldg(p.scales + block);
  }
  return stored;
}

// The sixteen weights of a block, each times CodeDecoder::unit: eight codes, the lowest first, put into their places.
__device__ __forceinline__ void expand(uint32_t codes, uint32_t places, float (&weights)[16]) {
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

// Tokens and rows beyond the last are computed as the last, and not written.
template <typename T, int kTokens, int kBlocks>
__global__ void __launch_bounds__(kWarps * 32, kTokens == 8 ? 2 : 4) gemv_2of4_kernel(const Gemv2of4 p, int tokens) {
  const int lane = threadIdx.x % 32;
  const float global_scale = *p.global_scale;
  for (int64_t group = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32; group * kRows < p.rows;
       group += static_cast<int64_t>(gridDim.x) * kWarps) {
    float sums[kRows][kTokens] = {};
    for (int64_t first = static_cast<int64_t>(lane) * kBlocks; first < p.width / 16; first += 32 * kBlocks) {
      Stored<kBlocks> stored[kRows];
#pragma unroll
      for (int i = 0; i < kRows; ++i) stored[i] = load_stored<kBlocks>(p, min(group * kRows + i, p.rows - 1), first);
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        float weights[kRows][16];
        float scales[kRows];
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
          expand(stored[i].codes[block], stored[i].places[block], weights[i]);
          scales[i] = e4m3_to_float(static_cast<uint8_t>(stored[i].scales >> (8 * block))) * (1.0f / CodeDecoder::unit);
        }
#pragma unroll
        for (int token = 0; token < kTokens; ++token) {
          float inputs[16];
          load_inputs(static_cast<const T *>(p.x) + min(token, tokens - 1) * p.width + 16 * (first + block), inputs);
#pragma unroll
          for (int i = 0; i < kRows; ++i) {
            float unscaled = 0.0f;
#pragma unroll
            for (int j = 0; j < 16; ++j) unscaled = fmaf(weights[i][j], inputs[j], unscaled);
            sums[i][token] = fmaf(scales[i], unscaled, sums[i][token]);
          }
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int64_t row = group * kRows + i;
#pragma unroll
      for (int token = 0; token < kTokens; ++token) {
        float sum = sums[i][token];
        for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(kAllLanes, sum, distance);
        if (lane == 0 && row < p.rows && token < tokens) store_output(static_cast<T *>(p.out) + token * p.rows + row, sum * global_scale);
      }
    }
  }
}

template <typename T, int kTokens>
void launch_one(const Gemv2of4 &p, int tokens, cudaStream_t stream) {
  constexpr int64_t kToABlock = kWarps * kRows;
  const dim3 grid(static_cast<unsigned>(std::min<int64_t>((p.rows + kToABlock - 1) / kToABlock, INT32_MAX)));
  const auto kernel = p.width % 64 == 0 ? gemv_2of4_kernel<T, kTokens, 4> : gemv_2of4_kernel<T, kTokens, 1>;
  launch("nvfp4_gemv_2of4", kernel, grid, dim3(kWarps * 32), 0, stream, p, tokens);
}

template <typename T>
void launch_all(Gemv2of4 p, cudaStream_t stream) {
  for (; p.tokens > 0; p.tokens -= kMostTokens) {
    const int tokens = static_cast<int>(std::min<int64_t>(p.tokens, kMostTokens));
    if (tokens == 1) {
      launch_one<T, 1>(p, tokens, stream);
    } else if (tokens == 2) {
      launch_one<T, 2>(p, tokens, stream);
    } else if (tokens <= 4) {
      launch_one<T, 4>(p, tokens, stream);
    } else {
      launch_one<T, 8>(p, tokens, stream);
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
