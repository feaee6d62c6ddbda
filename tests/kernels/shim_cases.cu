// Small kernels, right ones and wrong ones, that show what the shim does.
#include <algorithm>
#include <cstring>
#include <string>

#include "common/launch.cuh"

using sparkwright::dynamic_shared;
using sparkwright::launch;

namespace {

constexpr unsigned kAll = 0xffffffffu;

__global__ void indices(float *out) {
  const int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  out[block * blockDim.x * blockDim.y * blockDim.z + thread] = static_cast<float>(1000 * block + thread);
}

__global__ void reverse(float *out) {
  float *shared = dynamic_shared<float>();
  shared[threadIdx.x] = static_cast<float>(threadIdx.x);
  __syncthreads();
  out[threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}

__global__ void reverse_without_barrier(float *out) {
  float *shared = dynamic_shared<float>();
  shared[threadIdx.x] = static_cast<float>(threadIdx.x);
  out[threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}

__global__ void static_shared(float *out) {
  __shared__ float shared[64];
  shared[threadIdx.x] = static_cast<float>(blockIdx.x * 64 + threadIdx.x);
  __syncthreads();
  out[blockIdx.x * 64 + threadIdx.x] = shared[63 - threadIdx.x];
}

__global__ void shuffles(float *out) {
  const int lane = threadIdx.x % 32;
  const float own = static_cast<float>(lane);
  float sum = own;
  for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(kAll, sum, distance);
  out[0 * 32 + lane] = sum;
  out[1 * 32 + lane] = __shfl_down_sync(kAll, own, 3);
  out[2 * 32 + lane] = __shfl_up_sync(kAll, own, 3);
  out[3 * 32 + lane] = __shfl_sync(kAll, own, 5, 8);
  out[4 * 32 + lane] = __shfl_xor_sync(kAll, own, 4, 4);
  out[5 * 32 + lane] = static_cast<float>(__ballot_sync(kAll, lane < 5));
  out[6 * 32 + lane] = static_cast<float>(__any_sync(kAll, lane == 7) + 2 * __all_sync(kAll, lane < 7) + 4 * __all_sync(kAll, 1));
  float half = own;
  if (lane < 16) {
    half = __shfl_xor_sync(0x0000ffffu, own, 1);
  } else {
    half = __shfl_xor_sync(0xffff0000u, own, 2);
  }
  out[7 * 32 + lane] = half;
}

__global__ void counts(float *out) { atomicAdd(out, 1.0f); }

__global__ void fresh_shared(float *out) {
  out[threadIdx.x] = dynamic_shared<float>()[threadIdx.x];
  dynamic_shared<float>()[threadIdx.x] = 1.0f;
}

__global__ void barrier_for_some() {
  if (threadIdx.x < 32) __syncthreads();
}
__global__ void two_barriers() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}
__global__ void returned_before() {
  if (threadIdx.x == 7) return;
  __syncthreads();
}
__global__ void shuffle_for_some(float *out) {
  if (threadIdx.x < 31) out[threadIdx.x] = __shfl_xor_sync(kAll, 1.0f, 1);
  __syncthreads();
}
__global__ void mask_without_caller(float *out) { out[threadIdx.x] = __shfl_xor_sync(0xfffffffeu, 1.0f, 1); }
__global__ void reads_absent_lane(float *out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_sync(0x0000ffffu, 1.0f, 20);
}
__global__ void overrun(float *out) { out[threadIdx.x] = dynamic_shared<float>()[threadIdx.x + 1]; }
__global__ void nothing() {}

void run(const std::string &name, float *out) {
  const auto is = [&](const char *other) { return name == other; };
  if (is("indices")) launch("k", indices, dim3(2, 3, 2), dim3(4, 2, 3), 0, nullptr, out);
  if (is("reverse")) launch("k", reverse, 1, 96, 96 * 4, nullptr, out);
  if (is("reverse_without_barrier")) launch("k", reverse_without_barrier, 1, 96, 96 * 4, nullptr, out);
  if (is("static_shared")) launch("k", static_shared, 3, 64, 0, nullptr, out);
  if (is("shuffles")) launch("k", shuffles, 1, 32, 0, nullptr, out);
  if (is("counts")) launch("k", counts, dim3(5, 7), 33, 0, nullptr, out);
  if (is("fresh_shared")) launch("k", fresh_shared, 2, 32, 32 * 4, nullptr, out);
  if (is("barrier_for_some")) launch("k", barrier_for_some, 1, 64, 0, nullptr);
  if (is("two_barriers")) launch("k", two_barriers, 1, 64, 0, nullptr);
  if (is("returned_before")) launch("k", returned_before, 1, 64, 0, nullptr);
  if (is("shuffle_for_some")) launch("k", shuffle_for_some, 1, 32, 0, nullptr, out);
  if (is("mask_without_caller")) launch("k", mask_without_caller, 1, 32, 0, nullptr, out);
  if (is("reads_absent_lane")) launch("k", reads_absent_lane, 1, 32, 0, nullptr, out);
  if (is("overrun")) launch("k", overrun, 1, 32, 32 * 4, nullptr, out);
  if (is("block_too_large")) launch("k", nothing, 1, 1025, 0, nullptr);
  if (is("no_blocks")) launch("k", nothing, 0, 32, 0, nullptr);
  if (is("grid_y_too_large")) launch("k", nothing, dim3(1, 65536), 32, 0, nullptr);
  if (is("shared_too_large")) launch("k", nothing, 1, 32, 99 * 1024 + 1, nullptr);
  if (is("far_blocks")) launch("k", counts, 0x7fffffff, 1, 0, nullptr, out);
}

}  // namespace

extern "C" void run_case(const char *name, float *out, char *message, size_t size) {
  message[0] = '\0';
  try {
    run(name, out);
  } catch (const std::exception &error) {
    const size_t length = std::min(std::strlen(error.what()), size - 1);
    std::memcpy(message, error.what(), length);
    message[length] = '\0';
  }
}
