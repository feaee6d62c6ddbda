// y = x W^T for a few rows of x, where of each four consecutive weights of W two are stored: 3.5 bits a weight in place
// of NVFP4's 4.5. The weights were made so by throwing the other two away; that is lossy and never done by itself.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "common/types.h"

namespace sparkwright {

struct Gemv2of4 {
  int64_t tokens, rows, width;  // width is a multiple of 16
  const void *x;                // [tokens, width], 16 bits each
  const uint8_t *values;        // [rows, width / 4]: the kept codes of a group of four, the earlier in the low nibble
  const uint8_t *positions;     // [rows, width / 8]: of two groups, four bits each: the earlier's place in the low two bits
  const uint8_t *scales;        // [rows, width / 16], E4M3
  const float *global_scale;    // one; it multiplies
  void *out;                    // [tokens, rows], as x
  Activation16 activation;
};

// Launches on `stream` of the current device, or throws LaunchError. The caller has checked shapes and pointers.
void nvfp4_gemv_2of4(const Gemv2of4 &problem, cudaStream_t stream);

}  // namespace sparkwright
