// y = x W^T for up to eight rows of x, straight from NVFP4 weights.
//
//     y[m, n] = (sum over k of x[m, k] * code[n, k] * scale[n, k / 16]) * g        (or / g, see GlobalScale)
//
// with the sum in float32 and rounded to y's type once. Each weight is read once, whatever the number of rows. The order
// of the sum depends on n and k only: results repeat bit for bit, and a row's result does not depend on the other rows.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "common/types.h"

namespace sparkwright {

struct Nvfp4Gemv {
  int64_t rows;  // of x and y: 1 to 8
  int64_t n;     // rows of W that are multiplied
  int64_t k;     // a multiple of 16

  const void *x;               // [rows, k]
  const uint8_t *weight;       // [n, weight_pitch]: two codes in a byte, the lower one first; at least k / 2 bytes are read
  const uint8_t *scale;        // E4M3, where `layout` says
  const float *global_scale;   // one, on the device
  void *y;                     // [rows, n]
  int64_t weight_pitch;        // bytes from row to row, a multiple of 8; k / 2 without padding
  int64_t scale_blocks;        // scales of a row, padding included; k / 16 without

  Activation16 activation;     // of x and y
  ScaleLayout layout;
  GlobalScale global;
};

// Launches on `stream` of the current device. x, weight and scale start at multiples of 16 bytes.
//
// Throws std::invalid_argument for sizes and addresses that are not as above, and LaunchError.
void nvfp4_gemv(const Nvfp4Gemv &problem, cudaStream_t stream);

}  // namespace sparkwright
