// Starting a kernel, the same way from nvcc's code and from the CPU build (kernels/shim).
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <stdexcept>
#include <string>

namespace sparkwright {

// A kernel that could not be started.
class LaunchError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

#if defined(__CUDACC__)

// The dynamic shared memory of the block, aligned to 16 bytes.
template <typename T>
__device__ __forceinline__ T *dynamic_shared() {
  extern __shared__ __align__(16) unsigned char sparkwright_dynamic_shared[];
  return reinterpret_cast<T *>(sparkwright_dynamic_shared);
}

// Starts `kernel` on `stream` of the current device, or throws LaunchError. Allocates nothing and waits for nothing,
// so that it can be captured into a CUDA graph.
template <typename... Parameters, typename... Arguments>
void launch(const char *name, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
            const Arguments &...arguments) {
  const auto check = [name](cudaError_t error) {
    if (error != cudaSuccess) throw LaunchError(std::string(name) + ": " + cudaGetErrorString(error));
  };
  // More than 48 KB must be asked for, on every device anew; asking again costs nothing worth remembering it for.
  if (shared_bytes > 48 * 1024) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)));
  }
  kernel<<<grid, block, shared_bytes, stream>>>(static_cast<Parameters>(arguments)...);
  check(cudaGetLastError());
}

#else

template <typename T>
T *dynamic_shared() {
  return static_cast<T *>(simt::dynamic_shared());
}

template <typename... Parameters, typename... Arguments>
void launch(const char *name, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t,
            const Arguments &...arguments) {
  try {
    simt::run(grid, block, shared_bytes, [&] { kernel(static_cast<Parameters>(arguments)...); });
  } catch (const simt::Error &error) {
    throw LaunchError(std::string(name) + ": " + error.what());
  }
}

#endif

}  // namespace sparkwright
