// What the launchers and their callers say to each other.
#pragma once

#include <cstdint>

namespace sparkwright {

// The 16-bit type of the inputs and outputs.
enum class Activation16 : int { bfloat16 = 0, float16 = 1 };

// Where the E4M3 scale of row n, block g (of 16 weights) lies: at n * blocks + g, or in tiles of 128 rows by 4 blocks
// (the layout of Blackwell's tensor cores, to which vLLM's prefill kernels convert).
enum class ScaleLayout : int { linear = 0, tiled_128x4 = 1 };

// How a tensor's one float32 scale enters: weight = code * block scale * g (modelopt's weight_scale_2), or
// weight = code * block scale / g (compressed-tensors' weight_global_scale).
enum class GlobalScale : int { multiplies = 0, divides = 1 };

}  // namespace sparkwright
