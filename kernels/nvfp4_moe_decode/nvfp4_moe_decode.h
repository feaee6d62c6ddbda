// The routed experts of a mixture-of-experts layer for a few tokens, straight from NVFP4 weights.
//
// For each token m and each of its choices t, with expert e = expert_map[topk_ids[m, t]]:
//     h[m, t] = silu(g1 * (W_gate[e] x[m])) * (g3 * (W_up[e] x[m]))
//     out[m] = sum over t of topk_weights[m, t] * g2 * (W_down[e] h[m, t])
// with everything between x and out in float32. A choice whose expert is not here (an id or a map entry outside the
// experts) adds nothing and reads no weight.
//
// Two launches, no allocation, no synchronisation, no atomics: the sums have one order, so results repeat bit for bit,
// and both launches can be captured in a CUDA graph. Every index that may grow beyond 2^31 is 64 bits wide.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "common/types.h"

namespace sparkwright {

struct MoeDecode {
  // Shapes. `inner` is the width between the projections; hidden and inner are multiples of 16.
  int64_t tokens, choices, experts, hidden, inner;
  int64_t mapped_experts;  // entries of expert_map; -1 without one: an empty one has no address

  const void* x;                // [tokens, hidden], 16 bits each
  const uint8_t* w13;           // [experts, 2 * inner, hidden / 2]: gate rows and up rows
  const uint8_t* s13;           // their E4M3 scales, `s13_stride` bytes from expert to expert
  const float* g13;             // [experts, 2]: the global scales of gate and up
  const uint8_t* w2;            // [experts, hidden, inner / 2]
  const uint8_t* s2;            // their E4M3 scales, `s2_stride` bytes from expert to expert
  const float* g2;              // [experts]
  const float* topk_weights;    // [tokens, choices]
  const void* topk_ids;         // [tokens, choices], 32 or 64 bits each
  const int32_t* expert_map;    // [mapped_experts]
  float* workspace;             // [tokens, choices, inner]
  void* out;                    // [tokens, hidden], as x
  int64_t s13_stride, s2_stride;

  Activation16 activation;
  ScaleLayout layout;
  bool ids_are_64_bits;
  bool up_first;                // the up rows come before the gate rows (FlashInfer's order)
  bool weight_on_input;         // topk_weights scale x instead of the experts' results
};

// Launches on `stream` of the current device, or throws LaunchError. The caller has checked shapes and pointers.
void nvfp4_moe_decode(const MoeDecode &problem, cudaStream_t stream);

}  // namespace sparkwright
