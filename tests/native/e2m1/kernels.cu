// What the machine code of gb10/e2m1.cuh is read from. Each kernel reads, converts and writes; `exclusive_or` shares
// the reading and writing with `convert_eight`, so that the instructions of the conversion alone can be counted.
#include <cuda_fp4.h>

#include "gb10/e2m1.cuh"

namespace {

__device__ void load(float (&x)[8], const float4* from) {
  const unsigned i = 2 * (blockIdx.x * blockDim.x + threadIdx.x);
  const float4 low = from[i], high = from[i + 1];
  x[0] = low.x, x[1] = low.y, x[2] = low.z, x[3] = low.w;
  x[4] = high.x, x[5] = high.y, x[6] = high.z, x[7] = high.w;
}

__device__ void store(uint32_t* to, uint32_t word) { to[blockIdx.x * blockDim.x + threadIdx.x] = word; }

}  // namespace

extern "C" __global__ void exclusive_or(const float4* from, uint32_t* to) {
  float x[8];
  load(x, from);
  uint32_t word = 0;
  for (float each : x) word ^= __float_as_uint(each);
  store(to, word);
}

extern "C" __global__ void convert_eight(const float4* from, uint32_t* to) {
  float x[8];
  load(x, from);
  store(to, gb10::float8_to_e2m1(x));
}

extern "C" __global__ void convert_eight_with_cuda_fp4(const float4* from, uint32_t* to) {
  float x[8];
  load(x, from);
  uint32_t word = 0;
  for (int i = 0; i < 4; ++i) {
    const float2 pair = make_float2(x[2 * i], x[2 * i + 1]);
    word |= static_cast<uint32_t>(__nv_cvt_float2_to_fp4x2(pair, __NV_E2M1, cudaRoundNearest)) << (8 * i);
  }
  store(to, word);
}

extern "C" __global__ void convert_one(const float* from, uint8_t* to) {
  to[threadIdx.x] = gb10::float_to_e2m1(from[threadIdx.x]);
}

extern "C" __global__ void convert_sixteen(const float2* from, uint64_t* to) {
  float2 pairs[8];
  for (int i = 0; i < 8; ++i) pairs[i] = from[8 * threadIdx.x + i];
  to[threadIdx.x] = gb10::float16_to_e2m1(pairs);
}
