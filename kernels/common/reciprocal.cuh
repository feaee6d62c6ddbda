// CUDA's approximate reciprocal, which vLLM's NVFP4 quantiser uses.
#pragma once

#include <cuda_runtime.h>

#include <cmath>

namespace sparkwright {

// The instruction rcp.approx.ftz.f32. Its error is documented as at most 1 ulp and the bits are not; they can be read on a
// GPU only. The twin rounds correctly and flushes subnormals as the instruction does.
__device__ __forceinline__ float reciprocal_approximate_ftz(float x) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#else
  const auto flushed = [](float value) { return std::fpclassify(value) == FP_SUBNORMAL ? std::copysign(0.0f, value) : value; };
  return flushed(1.0f / flushed(x));
#endif
}

}  // namespace sparkwright
