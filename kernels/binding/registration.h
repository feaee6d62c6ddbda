// Where the operators run: on CUDA devices, or, in the tests' build through kernels/shim, on the CPU.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

#if defined(GB10_CPU)
#define GB10_DISPATCH_KEY CPU
#else
#define GB10_DISPATCH_KEY CUDA
#endif

namespace sparkwright {

// Makes a tensor's device the current one for as long as it lives. Nothing is remembered between calls.
class OnDevice {
 public:
  explicit OnDevice(const torch::stable::Tensor &tensor) : index_(tensor.get_device_index()) {
#if !defined(GB10_CPU)
    guard_.emplace(index_);
#endif
  }

  // The stream that torch works on now.
  cudaStream_t stream() const {
#if defined(GB10_CPU)
    return nullptr;
#else
    return static_cast<cudaStream_t>(torch::stable::accelerator::getCurrentStream(index_).nativeHandle());
#endif
  }

 private:
  int32_t index_;
#if !defined(GB10_CPU)
  std::optional<torch::stable::accelerator::DeviceGuard> guard_;
#endif
};

}  // namespace sparkwright
