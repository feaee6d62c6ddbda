// Reading NVFP4 on any GPU from compute capability 8.0 on, and on the host.
//
// Sixteen E2M1 codes share an E4M3 scale. A code becomes a float on the shortest way that the target has:
//   by_e2m1  a convert of two codes to two halves          from sm_100 on, targets with a suffix (121a, 120f)
//   by_e4m3  moved to the place of an E4M3 number of 2^-6 times the value, and that converted    from sm_89 on
//   by_bits  moved to the place of a half of 2^-14 times the value                                everywhere
// All three are exact, subnormals included. What they give is the value times `unit`, and the caller takes that back where
// it costs least: once for sixteen weights.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp4.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "common/types.h"

namespace sparkwright {

// Two halves in a word, the first in the low bits.
__device__ __forceinline__ float2 halves_to_float2(uint32_t word) {
  __half2_raw raw;
  raw.x = static_cast<unsigned short>(word);
  raw.y = static_cast<unsigned short>(word >> 16);
  return __half22float2(__half2(raw));
}

// Two bfloat16 in a word, the first in the low bits.
__device__ __forceinline__ float2 bfloats_to_float2(uint32_t word) {
  return make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u));
}

struct ByE2m1 {
  static constexpr float unit = 1.0f;
  static __device__ __forceinline__ void decode(uint32_t codes, float (&values)[8]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const __half2_raw pair = __nv_cvt_fp4x2_to_halfraw2(static_cast<__nv_fp4x2_storage_t>(codes >> (8 * i)), __NV_E2M1);
      const float2 floats = __half22float2(__half2(pair));
      values[2 * i] = floats.x;
      values[2 * i + 1] = floats.y;
    }
  }
};

struct ByE4m3 {
  static constexpr float unit = 1.0f / 64;
  static __device__ __forceinline__ void decode(uint32_t codes, float (&values)[8]) {
    // Sign to bit 7, exponent to bits 4 and 3, mantissa to bit 2 of each byte.
    const uint32_t even = ((codes << 4) & 0x80808080u) | ((codes << 2) & 0x1c1c1c1cu);
    const uint32_t odd = (codes & 0x80808080u) | ((codes >> 2) & 0x1c1c1c1cu);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const auto even_pair = static_cast<__nv_fp8x2_storage_t>(even >> (16 * i));
      const auto odd_pair = static_cast<__nv_fp8x2_storage_t>(odd >> (16 * i));
      const float2 evens = __half22float2(__half2(__nv_cvt_fp8x2_to_halfraw2(even_pair, __NV_E4M3)));
      const float2 odds = __half22float2(__half2(__nv_cvt_fp8x2_to_halfraw2(odd_pair, __NV_E4M3)));
      values[4 * i] = evens.x;
      values[4 * i + 1] = odds.x;
      values[4 * i + 2] = evens.y;
      values[4 * i + 3] = odds.y;
    }
  }
};

struct ByBits {
  static constexpr float unit = 1.0f / 16384;
  static __device__ __forceinline__ void decode(uint32_t codes, float (&values)[8]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      // Codes i and i + 4: sign to bits 15 and 31, exponent and mantissa to bits 9 to 11 and 25 to 27.
      const uint32_t moved = codes << (12 - 4 * i);
      const float2 floats = halves_to_float2((moved & 0x80008000u) | ((moved >> 3) & 0x0e000e00u));
      values[i] = floats.x;
      values[i + 4] = floats.y;
    }
  }
};

#if defined(__CUDA_ARCH_FAMILY_SPECIFIC__) && __CUDA_ARCH_FAMILY_SPECIFIC__ >= 1000
using CodeDecoder = ByE2m1;
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
using CodeDecoder = ByE4m3;
#elif defined(__CUDA_ARCH__) || !defined(SPARKWRIGHT_HOST_DECODER)
using CodeDecoder = ByBits;
#else
using CodeDecoder = SPARKWRIGHT_HOST_DECODER;  // a test runs the kernels with each
#endif

// An E4M3 byte without a convert: the place of a half of 2^-8 times the value. A NaN (S.1111.111) would read as 480.
__device__ __forceinline__ float e4m3_to_float_by_bits(uint8_t byte) {
  const uint32_t half = (byte & 0x80u) << 8 | (byte & 0x7fu) << 7;
  const float value = 256.0f * halves_to_float2(half).x;
  return (byte & 0x7fu) == 0x7fu ? __uint_as_float(0x7fffffffu) : value;
}

// Two E4M3 bytes, the first in the low bits.
__device__ __forceinline__ float2 e4m3x2_to_float2(uint16_t bytes) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  return __half22float2(__half2(__nv_cvt_fp8x2_to_halfraw2(bytes, __NV_E4M3)));
#else
  return make_float2(e4m3_to_float_by_bits(static_cast<uint8_t>(bytes)), e4m3_to_float_by_bits(static_cast<uint8_t>(bytes >> 8)));
#endif
}

__device__ __forceinline__ float e4m3_to_float(uint8_t byte) { return e4m3x2_to_float2(byte).x; }

// The place of a block's scale, see ScaleLayout. In a tile: row % 32, then row / 32, then block.
__device__ __forceinline__ int64_t scale_offset(ScaleLayout layout, int64_t row, int64_t block, int64_t blocks) {
  if (layout == ScaleLayout::linear) return row * blocks + block;
  const int64_t tile = row / 128 * ((blocks + 3) / 4) + block / 4;
  return tile * 512 + row % 32 * 16 + row % 128 / 32 * 4 + block % 4;
}

// Packed codes that one load brings: 32 with 16 bytes, or 16 with 8.
template <int kValues>
struct Packed {
  static_assert(kValues == 32 || kValues == 16);
  uint32_t words[kValues / 8];
};

// Loads what is read once and by one thread only: it is not kept in L1. `from` is aligned to kValues / 2 bytes.
template <int kValues>
__device__ __forceinline__ Packed<kValues> load_packed(const uint8_t *from) {
  Packed<kValues> packed;
#if defined(__CUDA_ARCH__)
  if constexpr (kValues == 32) {
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(packed.words[0]), "=r"(packed.words[1]), "=r"(packed.words[2]), "=r"(packed.words[3])
        : "l"(from));
  } else {
    asm("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(packed.words[0]), "=r"(packed.words[1]) : "l"(from));
  }
#else
  if constexpr (kValues == 32) {
    const uint4 loaded = *reinterpret_cast<const uint4 *>(from);
    packed = {{loaded.x, loaded.y, loaded.z, loaded.w}};
  } else {
    const uint2 loaded = *reinterpret_cast<const uint2 *>(from);
    packed = {{loaded.x, loaded.y}};
  }
#endif
  return packed;
}

// Eight 16-bit inputs that one load brought.
template <typename T>
__device__ __forceinline__ void unpack_inputs(const uint4 &loaded, float *values) {
  const uint32_t words[4] = {loaded.x, loaded.y, loaded.z, loaded.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = std::is_same_v<T, __half> ? halves_to_float2(words[i]) : bfloats_to_float2(words[i]);
    values[2 * i] = pair.x;
    values[2 * i + 1] = pair.y;
  }
}

// Inputs as floats. `from` is aligned to 16 bytes.
template <typename T, int kValues>
__device__ __forceinline__ void load_inputs(const T *from, float (&values)[kValues]) {
#pragma unroll
  for (int i = 0; i < kValues / 8; ++i) unpack_inputs<T>(reinterpret_cast<const uint4 *>(from)[i], values + 8 * i);
}
template <int kValues>
__device__ __forceinline__ void load_inputs(const float *from, float (&values)[kValues]) {
#pragma unroll
  for (int i = 0; i < kValues / 4; ++i) {
    const float4 loaded = reinterpret_cast<const float4 *>(from)[i];
    values[4 * i] = loaded.x;
    values[4 * i + 1] = loaded.y;
    values[4 * i + 2] = loaded.z;
    values[4 * i + 3] = loaded.w;
  }
}

__device__ __forceinline__ void store_output(__nv_bfloat16 *to, float value) { *to = __float2bfloat16_rn(value); }
__device__ __forceinline__ void store_output(__half *to, float value) { *to = __float2half_rn(value); }

}  // namespace sparkwright
