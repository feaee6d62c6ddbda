// Stands in for CUDA's header of this name when g++ compiles a .cu file to run on the CPU (see README.md).
//
// The real header comes first: its types, macros and host declarations are used as they are. What follows is what only
// nvcc knows: the built-in variables, barriers, warp exchanges and a few intrinsics, on top of the scheduler in simt.h.
#pragma once

#if defined(__CUDACC__)
#error "kernels/shim is for a host compiler; nvcc must see CUDA's own cuda_runtime.h"
#endif

#include_next <cuda_runtime.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "simt.h"

// Blocks run one after another, so that one object a thread of the machine is one object a block. It keeps what the
// block before left in it; dynamic shared memory is overwritten before each block and is the better choice.
#undef __shared__
#define __shared__ static thread_local
#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __grid_constant__
#define __grid_constant__

inline thread_local uint3 threadIdx{};
inline thread_local uint3 blockIdx{};
inline thread_local dim3 blockDim{};
inline thread_local dim3 gridDim{};
inline constexpr int warpSize = 32;

// A barrier is known by its line. The lines come in as default arguments, which name the caller's place.
#define SIMT_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(SIMT_HERE) { simt::block_barrier({file, line}); }
inline void __syncwarp(unsigned mask = 0xffffffffu, SIMT_HERE) { simt::warp_exchange("__syncwarp", mask, 0, {file, line}); }

namespace simt {

template <typename T>
uint64_t to_word(T value) {
  static_assert(sizeof(T) <= sizeof(uint64_t) && std::is_trivially_copyable_v<T>);
  uint64_t word = 0;
  std::memcpy(&word, &value, sizeof(T));
  return word;
}

template <typename T>
T from_word(uint64_t word) {
  T value;
  std::memcpy(static_cast<void *>(&value), &word, sizeof(T));
  return value;
}

// `source` is computed by each lane within its segment of `width`; outside of it a lane keeps its own value.
template <typename T>
T shuffle(const char *name, unsigned mask, T value, int source, Place place) {
  const Lanes lanes = warp_exchange(name, mask, to_word(value), place);
  if (source == lane()) return value;
  if (!(lanes.present >> source & 1u)) fail("lane " + std::to_string(source) + " is read and takes no part in " + name, place);
  return from_word<T>(lanes.words[source]);
}

inline int segment(int width) { return lane() & ~(width - 1); }

}  // namespace simt

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, SIMT_HERE) {
  return simt::shuffle("__shfl_sync", mask, value, simt::segment(width) | (source & (width - 1)), {file, line});
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int distance, int width = 32, SIMT_HERE) {
  const int source = simt::lane() ^ distance;
  const bool inside = source < simt::segment(width) + width;
  return simt::shuffle("__shfl_xor_sync", mask, value, inside ? source : simt::lane(), {file, line});
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = 32, SIMT_HERE) {
  const int source = simt::lane() + static_cast<int>(distance);
  const bool inside = source < simt::segment(width) + width;
  return simt::shuffle("__shfl_down_sync", mask, value, inside ? source : simt::lane(), {file, line});
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = 32, SIMT_HERE) {
  const int source = simt::lane() - static_cast<int>(distance);
  const bool inside = source >= simt::segment(width);
  return simt::shuffle("__shfl_up_sync", mask, value, inside ? source : simt::lane(), {file, line});
}

inline unsigned __ballot_sync(unsigned mask, int predicate, SIMT_HERE) {
  const simt::Lanes lanes = simt::warp_exchange("__ballot_sync", mask, predicate != 0, {file, line});
  unsigned ballot = 0;
  for (int i = 0; i < 32; ++i) ballot |= static_cast<unsigned>((lanes.present >> i & 1u) && lanes.words[i] != 0) << i;
  return ballot;
}
inline int __any_sync(unsigned mask, int predicate, SIMT_HERE) {
  return __ballot_sync(mask, predicate, file, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, SIMT_HERE) {
  return __ballot_sync(mask, predicate == 0, file, line) == 0;
}
inline unsigned __activemask() = delete;  // on a GPU it depends on how the compiler scheduled the warp

#undef SIMT_HERE

// Threads of a block take turns only at barriers and warp exchanges, so that a plain update is an atomic one.
template <typename T>
T atomicAdd(T *address, T value) {
  const T old = *address;
  *address = static_cast<T>(old + value);
  return old;
}
template <typename T>
T atomicMax(T *address, T value) {
  const T old = *address;
  *address = std::max(old, value);
  return old;
}
inline void __threadfence() {}
inline void __threadfence_block() {}

template <typename T>
T __ldg(const T *address) {
  return *address;
}
template <typename T>
T __ldcs(const T *address) {
  return *address;
}
template <typename T>
T __ldcg(const T *address) {
  return *address;
}

using std::max;
using std::min;

inline uint32_t __float_as_uint(float x) { return simt::from_word<uint32_t>(simt::to_word(x)); }
inline float __uint_as_float(uint32_t x) { return simt::from_word<float>(x); }
inline int __popc(unsigned x) { return std::popcount(x); }
inline int __ffs(int x) { return x == 0 ? 0 : std::countr_zero(static_cast<unsigned>(x)) + 1; }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
