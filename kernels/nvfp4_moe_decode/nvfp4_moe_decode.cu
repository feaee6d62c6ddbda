#include "nvfp4_moe_decode/nvfp4_moe_decode.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "common/launch.cuh"
#include "common/nvfp4.cuh"

// How the work is cut. A warp owns a few rows of an expert's matrix and walks along them; each lane loads the weights of
// `kValues` consecutive inputs with one load per row, so that a warp's loads are contiguous and as many are in flight as
// it has rows: all of them start before the first product, which a test of the machine code checks. The inputs of these
// places are loaded once for all rows of the warp. One shuffle reduction ends a row.
// There is no shared memory and no barrier: what is reused (x, the activated states) is small and stays in the caches.

namespace sparkwright {
namespace {

constexpr int kWarps = 4;            // in a block
constexpr int kBlocks = 4;           // to a multiprocessor: leaves a thread 128 registers, which all of these loads need
constexpr int kRows = 4;             // of a matrix to a warp; widths are multiples of 16, so that no warp has a tail
constexpr int kColumns = kRows / 2;  // of the inner width to a warp: as many gate rows and as many up rows
constexpr unsigned kAllLanes = 0xffffffffu;

// The expert here that choice `pair` goes to, or -1.
__device__ __forceinline__ int64_t expert_of(const MoeDecode &p, int64_t pair) {
  int64_t expert = p.ids_are_64_bits ? static_cast<const int64_t *>(p.topk_ids)[pair] : static_cast<const int32_t *>(p.topk_ids)[pair];
  if (p.mapped_experts >= 0) expert = expert >= 0 && expert < p.mapped_experts ? p.expert_map[expert] : -1;
  return expert >= 0 && expert < p.experts ? expert : -1;
}

__device__ float warp_sum(float value) {
  for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(kAllLanes, value, distance);
  return value;
}

template <bool kTiled>
constexpr ScaleLayout kLayout = kTiled ? ScaleLayout::tiled_128x4 : ScaleLayout::linear;

// The scales of a row start here; those of block b are scale_offset(layout, 0, b, blocks) further, in both layouts.
template <bool kTiled>
__device__ __forceinline__ const uint8_t *scales_of(const uint8_t *scales, int64_t row, int64_t blocks) {
  return scales + scale_offset(kLayout<kTiled>, row, 0, blocks);
}

// The scales of `kValues` places of a row, the first lowest. `first` is the first place's index.
template <int kValues, bool kTiled>
__device__ __forceinline__ uint16_t load_scales(const uint8_t *scales, int64_t first) {
  const uint8_t *from = scales + scale_offset(kLayout<kTiled>, 0, first / 16, 0);
  // Two scales side by side: their number is even where a load brings two blocks.
  return kValues == 32 ? __ldg(reinterpret_cast<const uint16_t *>(from)) : __ldg(from);
}

// Adds to each row's sum that of weight * scale * input over `kValues` places. The rows take turns at eight places, so
// that the compiler cannot put off the load of one row until another one is done.
template <int kValues>
__device__ __forceinline__ void add_products(const Packed<kValues> (&weights)[kRows], const uint16_t (&scales)[kRows],
                                             const float (&inputs)[kValues], float (&sums)[kRows]) {
  float2 factors[kRows];
#pragma unroll
  for (int i = 0; i < kRows; ++i) factors[i] = e4m3x2_to_float2(scales[i]);
#pragma unroll
  for (int block = 0; block < kValues / 16; ++block) {
    float block_sums[kRows] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        float codes[8];
        CodeDecoder::decode(weights[i].words[2 * block + half], codes);
#pragma unroll
        for (int j = 0; j < 8; ++j) block_sums[i] = fmaf(codes[j], inputs[16 * block + 8 * half + j], block_sums[i]);
      }
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      sums[i] = fmaf(block == 0 ? factors[i].x : factors[i].y, block_sums[i] * (1.0f / CodeDecoder::unit), sums[i]);
    }
  }
}

template <typename T, int kValues, bool kTiled>
__global__ void __launch_bounds__(kWarps * 32, kBlocks) gate_up_kernel(const MoeDecode p) {
  const int lane = threadIdx.x % 32;
  const int64_t groups = p.inner / kColumns;
  const int64_t tasks = p.tokens * p.choices * groups;
  const int64_t blocks = p.hidden / 16;
  for (int64_t task = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32; task < tasks;
       task += static_cast<int64_t>(gridDim.x) * kWarps) {
    const int64_t pair = task / groups;
    const int64_t expert = expert_of(p, pair);
    if (expert < 0) continue;
    const T *x = static_cast<const T *>(p.x) + pair / p.choices * p.hidden;
    const uint8_t *weights = p.w13 + expert * 2 * p.inner * (p.hidden / 2);
    const uint8_t *scales = p.s13 + expert * p.s13_stride;

    int64_t rows[kRows];
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      const int64_t column = task % groups * kColumns + i;
      rows[2 * i] = column + (p.up_first ? p.inner : 0);
      rows[2 * i + 1] = column + (p.up_first ? 0 : p.inner);
    }
    const uint8_t *row_weights[kRows];
    const uint8_t *row_scales[kRows];
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      row_weights[i] = weights + rows[i] * (p.hidden / 2);
      row_scales[i] = scales_of<kTiled>(scales, rows[i], blocks);
    }
    float sums[kRows] = {};
    for (int64_t first = static_cast<int64_t>(lane) * kValues; first < p.hidden; first += 32 * kValues) {
      Packed<kValues> packed[kRows];
      uint16_t block_scales[kRows];
#pragma unroll
      for (int i = 0; i < kRows; ++i) packed[i] = load_packed<kValues>(row_weights[i] + first / 2);
#pragma unroll
      for (int i = 0; i < kRows; ++i) block_scales[i] = load_scales<kValues, kTiled>(row_scales[i], first);
      float inputs[kValues];
      load_inputs(x + first, inputs);
      add_products(packed, block_scales, inputs, sums);
    }
    const float on_input = p.weight_on_input ? p.topk_weights[pair] : 1.0f;
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      const float gate = warp_sum(sums[2 * i]) * p.g13[2 * expert] * on_input;
      const float up = warp_sum(sums[2 * i + 1]) * p.g13[2 * expert + 1] * on_input;
      const int64_t column = task % groups * kColumns + i;
      if (lane == 0) p.workspace[pair * p.inner + column] = gate / (1.0f + expf(-gate)) * up;
    }
  }
}

// A warp sums over all choices of a token, which it lines up one behind the other: with an inner width of 512 a row of
// one expert has work for half a warp only.
template <typename T, int kValues, bool kTiled>
__global__ void __launch_bounds__(kWarps * 32, kBlocks) down_kernel(const MoeDecode p) {
  const int lane = threadIdx.x % 32;
  const int64_t groups = p.hidden / kRows;
  const int64_t tasks = p.tokens * groups;
  const int64_t blocks = p.inner / 16;
  const int loads = static_cast<int>(p.inner / kValues);  // to a row; 2^31 of them would not fit into a GPU
  const int choices_further = 32 / loads;
  const int loads_further = 32 % loads;
  for (int64_t task = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32; task < tasks;
       task += static_cast<int64_t>(gridDim.x) * kWarps) {
    const int64_t token = task / groups;
    int64_t rows[kRows];
#pragma unroll
    for (int i = 0; i < kRows; ++i) rows[i] = task % groups * kRows + i;
    float sums[kRows] = {};
    int64_t choice = lane / loads;
    int load = lane % loads;
    // 32 loads further, without a division.
    const auto advance = [&] {
      choice += choices_further;
      load += loads_further;
      if (load >= loads) {
        load -= loads;
        ++choice;
      }
    };
    for (; choice < p.choices; advance()) {
      const int64_t pair = token * p.choices + choice;
      const int64_t first = static_cast<int64_t>(load) * kValues;
      const int64_t expert = expert_of(p, pair);
      if (expert < 0) continue;
      const uint8_t *weights = p.w2 + expert * p.hidden * (p.inner / 2);
      const uint8_t *scales = p.s2 + expert * p.s2_stride;
      Packed<kValues> packed[kRows];
      uint16_t block_scales[kRows];
#pragma unroll
      for (int i = 0; i < kRows; ++i) packed[i] = load_packed<kValues>(weights + rows[i] * (p.inner / 2) + first / 2);
#pragma unroll
      for (int i = 0; i < kRows; ++i) block_scales[i] = load_scales<kValues, kTiled>(scales_of<kTiled>(scales, rows[i], blocks), first);
      float inputs[kValues];
      load_inputs(p.workspace + pair * p.inner + first, inputs);
      const float weight = p.g2[expert] * (p.weight_on_input ? 1.0f : p.topk_weights[pair]);
      float products[kRows] = {};
      add_products(packed, block_scales, inputs, products);
#pragma unroll
      for (int i = 0; i < kRows; ++i) sums[i] = fmaf(weight, products[i], sums[i]);
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const float sum = warp_sum(sums[i]);
      const int64_t row = task % groups * kRows + i;
      if (lane == 0) store_output(static_cast<T *>(p.out) + token * p.hidden + row, sum);
    }
  }
}

// A grid's x may hold 2^31 - 1 blocks; the kernels' loops take what is left.
dim3 grid_for(int64_t tasks) {
  return dim3(static_cast<unsigned>(std::min<int64_t>((tasks + kWarps - 1) / kWarps, INT32_MAX)));
}

template <typename T, bool kTiled>
void launch_both(const MoeDecode &p, cudaStream_t stream) {
  const dim3 block(kWarps * 32);
  const int64_t pairs = p.tokens * p.choices;
  if (pairs > 0) {
    const auto kernel = p.hidden % 32 == 0 ? gate_up_kernel<T, 32, kTiled> : gate_up_kernel<T, 16, kTiled>;
    launch("nvfp4_moe_decode gate and up", kernel, grid_for(pairs * (p.inner / kColumns)), block, 0, stream, p);
  }
  const auto kernel = p.inner % 32 == 0 ? down_kernel<T, 32, kTiled> : down_kernel<T, 16, kTiled>;
  launch("nvfp4_moe_decode down", kernel, grid_for(p.tokens * (p.hidden / kRows)), block, 0, stream, p);
}

}  // namespace

void nvfp4_moe_decode(const MoeDecode &p, cudaStream_t stream) {
  if (p.tokens == 0) return;
  const bool bfloat16 = p.activation == Activation16::bfloat16;
  if (p.layout == ScaleLayout::tiled_128x4) {
    bfloat16 ? launch_both<__nv_bfloat16, true>(p, stream) : launch_both<__half, true>(p, stream);
  } else {
    bfloat16 ? launch_both<__nv_bfloat16, false>(p, stream) : launch_both<__half, false>(p, stream);
  }
}

}  // namespace sparkwright
