#include "nvfp4_gemv/nvfp4_gemv.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "common/launch.cuh"
#include "common/nvfp4.cuh"

// How the work is cut. A warp owns four rows of W and walks along them in chunks. In a chunk each lane takes kValues
// consecutive weights of each row with one load, so that a warp reads 512 bytes of each row at once, and it has the loads
// of the next chunk under way while it computes this one. The rows of x lie in shared memory, a few chunks at a time,
// ordered so that neighbouring lanes read neighbouring words. Where W has few rows, two warps share them, one taking the
// even chunks and one the odd ones.
//
// Four rows: what is loaded from shared memory and made a float is then used four times. In the tiled layout the four are
// 32 apart, because their scales for four blocks lie together in 16 bytes.

namespace sparkwright {
namespace {

constexpr int kWarps = 8;
constexpr int kRows = 4;
constexpr unsigned kAllLanes = 0xffffffffu;
// Below so many rows of W two warps share them. It depends on nothing but the problem, so that every GPU sums in the
// same order.
constexpr int64_t kFewRows = 8192;

template <int kM>
constexpr int kTileChunks = kM >= 4 ? 2 : 8 / kM;  // chunks of x in shared memory; even, so that two warps can share

// What a lane holds of a chunk: the codes of each row, and their scales in the low bytes, the first lowest.
template <int kValues>
struct Weights {
  Packed<kValues> codes[kRows];
  uint32_t scales[kRows];
};

template <int kValues, bool kTiled>
__device__ __forceinline__ Weights<kValues> load_weights(const Nvfp4Gemv &p, const int64_t (&rows)[kRows], int64_t unit) {
  Weights<kValues> weights{};
  if (unit * kValues >= p.k) return weights;
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    weights.codes[i] = load_packed<kValues>(p.weight + rows[i] * p.weight_pitch + unit * (kValues / 2));
  }
  constexpr int kBlocks = kValues / 16;
  if constexpr (kTiled) {
    // One load for the four rows; those beyond the last row of W lie in the padding.
    const int64_t at = scale_offset(ScaleLayout::tiled_128x4, rows[0], unit * kBlocks / 4 * 4, p.scale_blocks);
    const uint4 loaded = __ldg(reinterpret_cast<const uint4 *>(p.scale + at));
    const int shift = 8 * static_cast<int>(unit * kBlocks % 4);
    weights.scales[0] = loaded.x >> shift;
    weights.scales[1] = loaded.y >> shift;
    weights.scales[2] = loaded.z >> shift;
    weights.scales[3] = loaded.w >> shift;
  } else {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const uint8_t *from = p.scale + scale_offset(ScaleLayout::linear, rows[i], unit * kBlocks, p.scale_blocks);
      weights.scales[i] = kBlocks == 2 ? __ldg(reinterpret_cast<const uint16_t *>(from)) : __ldg(from);
    }
  }
  return weights;
}

// Copies a tile of x to shared memory, eight values at a time; what lies beyond x becomes zero. Of each lane's kValues / 8
// pieces the first ones of all lanes come first, then the second ones.
template <int kM, int kValues>
__device__ __forceinline__ void stage(const Nvfp4Gemv &p, int64_t first_chunk, uint4 *tile) {
  constexpr int kPieces = kValues / 8;
  constexpr int kPerChunk = 32 * kPieces;
  for (int i = threadIdx.x; i < kM * kTileChunks<kM> * kPerChunk; i += kWarps * 32) {
    const int m = i / (kTileChunks<kM> * kPerChunk);
    const int in_row = i % (kTileChunks<kM> * kPerChunk);
    const int64_t k = (first_chunk * kPerChunk + in_row) * 8;
    uint4 values = make_uint4(0, 0, 0, 0);
    if (m < p.rows && k < p.k) values = __ldg(reinterpret_cast<const uint4 *>(static_cast<const uint16_t *>(p.x) + m * p.k + k));
    const int in_chunk = in_row % kPerChunk;
    tile[i - in_chunk + in_chunk % kPieces * 32 + in_chunk / kPieces] = values;
  }
}

// Adds a chunk to the sums. `x` points at this lane's first piece of the chunk for the first row of x.
template <typename T, int kM, int kValues>
__device__ __forceinline__ void multiply(const Weights<kValues> &weights, const uint4 *x, float (&sums)[kRows][kM]) {
  constexpr int kPieces = kValues / 8;
#pragma unroll
  for (int block = 0; block < kValues / 16; ++block) {
    float block_sums[kRows][kM] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int piece = 2 * block + half;
      float codes[kRows][8];
#pragma unroll
      for (int i = 0; i < kRows; ++i) CodeDecoder::decode(weights.codes[i].words[piece], codes[i]);
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        float inputs[8];
        unpack_inputs<T>(x[m * kTileChunks<kM> * 32 * kPieces + piece * 32], inputs);
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
#pragma unroll
          for (int j = 0; j < 8; ++j) block_sums[i][m] = fmaf(codes[i][j], inputs[j], block_sums[i][m]);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const float scale = e4m3_to_float(static_cast<uint8_t>(weights.scales[i] >> (8 * block)));
#pragma unroll
      for (int m = 0; m < kM; ++m) sums[i][m] = fmaf(scale, block_sums[i][m], sums[i][m]);
    }
  }
}

template <typename T, int kM, int kValues, bool kTiled, int kSplit>
__global__ void __launch_bounds__(kWarps * 32, kM <= 2 ? 2 : 1) gemv_kernel(const Nvfp4Gemv p) {
  constexpr int kPerChunk = 32 * kValues / 8;
  uint4 *tile = dynamic_shared<uint4>();
  const int lane = threadIdx.x % 32;
  const int split = threadIdx.x / 32 % kSplit;
  const int64_t group = static_cast<int64_t>(blockIdx.x) * (kWarps / kSplit) + threadIdx.x / 32 / kSplit;

  // A row beyond the last is computed as the last and not written; in the tiled layout its scales are its own.
  const int64_t first_row = kTiled ? group / 32 * 128 + group % 32 : group * kRows;
  int64_t rows[kRows];
#pragma unroll
  for (int i = 0; i < kRows; ++i) rows[i] = min(first_row + i * (kTiled ? 32 : 1), p.n - 1);

  float sums[kRows][kM] = {};
  const int64_t chunks = (p.k + 32 * kValues - 1) / (32 * kValues);
  Weights<kValues> weights = load_weights<kValues, kTiled>(p, rows, static_cast<int64_t>(split) * 32 + lane);
  for (int64_t first_chunk = 0; first_chunk < chunks; first_chunk += kTileChunks<kM>) {
    if (first_chunk > 0) __syncthreads();
    stage<kM, kValues>(p, first_chunk, tile);
    __syncthreads();
#pragma unroll 1
    for (int chunk = split; chunk < kTileChunks<kM> && first_chunk + chunk < chunks; chunk += kSplit) {
      const Weights<kValues> next = load_weights<kValues, kTiled>(p, rows, (first_chunk + chunk + kSplit) * 32 + lane);
      multiply<T, kM>(weights, tile + chunk * kPerChunk + lane, sums);
      weights = next;
    }
  }

#pragma unroll
  for (int i = 0; i < kRows; ++i) {
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      for (int distance = 16; distance > 0; distance /= 2) sums[i][m] += __shfl_xor_sync(kAllLanes, sums[i][m], distance);
    }
  }
  if constexpr (kSplit == 2) {
    float *other = reinterpret_cast<float *>(tile) + threadIdx.x / 64 * kRows * kM;
    __syncthreads();
    if (split == 1 && lane == 0) {
#pragma unroll
      for (int i = 0; i < kRows * kM; ++i) other[i] = sums[i / kM][i % kM];
    }
    __syncthreads();
    if (split == 0) {
#pragma unroll
      for (int i = 0; i < kRows * kM; ++i) sums[i / kM][i % kM] += other[i];
    }
  }
  if (split != 0 || lane != 0) return;
  const float global_scale = __ldg(p.global_scale);
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const int64_t row = first_row + i * (kTiled ? 32 : 1);
    if (row >= p.n) continue;
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      if (m >= p.rows) continue;
      const float sum = sums[i][m] * (1.0f / CodeDecoder::unit);
      const float result = p.global == GlobalScale::multiplies ? sum * global_scale : sum / global_scale;
      store_output(static_cast<T *>(p.y) + m * p.n + row, result);
    }
  }
}

template <typename T, int kM, int kValues, bool kTiled, int kSplit>
void start(const Nvfp4Gemv &p, cudaStream_t stream) {
  constexpr int64_t kPerBlock = kWarps / kSplit;
  const int64_t groups = kTiled ? (p.n + 127) / 128 * 32 : (p.n + kRows - 1) / kRows;
  const int64_t blocks = (groups + kPerBlock - 1) / kPerBlock;
  if (blocks > INT32_MAX) throw std::invalid_argument("nvfp4_gemv: n = " + std::to_string(p.n) + " is too large");
  const size_t shared = kM * kTileChunks<kM> * 32 * kValues * sizeof(uint16_t);
  launch("nvfp4_gemv", gemv_kernel<T, kM, kValues, kTiled, kSplit>, dim3(static_cast<unsigned>(blocks)), dim3(kWarps * 32),
         shared, stream, p);
}

template <typename T, int kM, int kValues, bool kTiled>
void choose_split(const Nvfp4Gemv &p, cudaStream_t stream) {
  if constexpr (kValues == 32) {
    if (p.n < kFewRows && p.k > 32 * kValues) return start<T, kM, kValues, kTiled, 2>(p, stream);
  }
  start<T, kM, kValues, kTiled, 1>(p, stream);
}

template <typename T, int kM>
void choose_load(const Nvfp4Gemv &p, cudaStream_t stream) {
  const bool wide = p.k % 32 == 0 && p.weight_pitch % 16 == 0 && p.scale_blocks % 2 == 0;
  if (p.layout == ScaleLayout::tiled_128x4) {
    wide ? choose_split<T, kM, 32, true>(p, stream) : choose_split<T, kM, 16, true>(p, stream);
  } else {
    wide ? choose_split<T, kM, 32, false>(p, stream) : choose_split<T, kM, 16, false>(p, stream);
  }
}

template <typename T>
void choose_rows(const Nvfp4Gemv &p, cudaStream_t stream) {
  if (p.rows == 1) return choose_load<T, 1>(p, stream);
  if (p.rows == 2) return choose_load<T, 2>(p, stream);
  if (p.rows <= 4) return choose_load<T, 4>(p, stream);
  choose_load<T, 8>(p, stream);
}

void require(bool holds, const std::string &what) {
  if (!holds) throw std::invalid_argument("nvfp4_gemv: " + what);
}

bool aligned(const void *address, uintptr_t to) { return reinterpret_cast<uintptr_t>(address) % to == 0; }

}  // namespace

void nvfp4_gemv(const Nvfp4Gemv &p, cudaStream_t stream) {
  require(p.rows >= 1 && p.rows <= 8, std::to_string(p.rows) + " rows of x; it takes 1 to 8");
  require(p.k > 0 && p.k % 16 == 0, "k = " + std::to_string(p.k) + " is not a positive multiple of 16");
  require(p.n >= 0, "n = " + std::to_string(p.n) + " is negative");
  require(p.weight_pitch >= p.k / 2 && p.weight_pitch % 8 == 0,
          "a weight pitch of " + std::to_string(p.weight_pitch) + " bytes is less than k / 2 or not a multiple of 8");
  require(p.scale_blocks >= p.k / 16, std::to_string(p.scale_blocks) + " scales to a row are less than k / 16");
  require(aligned(p.x, 16) && aligned(p.weight, 16) && aligned(p.scale, 16),
          "x, weight or scale does not start at a multiple of 16 bytes");
  if (p.n == 0) return;
  p.activation == Activation16::bfloat16 ? choose_rows<__nv_bfloat16>(p, stream) : choose_rows<__half>(p, stream);
}

}  // namespace sparkwright
