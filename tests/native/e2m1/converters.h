// The functions under test and what they are held against, each compiled in a file of its own, so that the former can
// be compiled with other options and from a broken copy of the header. `count` is a multiple of 8.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

// gb10/e2m1.cuh: each value alone, each eight values packed, and of each two values the signs as the rule takes them.
void candidate(const float* values, size_t count, uint8_t* alone, uint32_t* packed, uint32_t* signs);

// CUDA's own headers: the nearest E2M1 value, and the sign after rounding to bfloat16.
void reference(const float* values, size_t count, uint8_t* nearest, uint8_t* negative);
}
