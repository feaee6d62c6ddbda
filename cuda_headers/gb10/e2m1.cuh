// Float to E2M1 (FP4: a sign, two exponent bits, one mantissa bit) on every target, the host included.
//
// Why it exists. The instruction `cvt.rn.satfinite.e2m1x2.f32` belongs to the architecture-specific and family-specific
// targets from sm_100 on (sm_100a, sm_120f, sm_121a, ...). GB10 has it, but ptxas refuses it for a target named without
// the suffix (sm_120, sm_121), and earlier GPUs lack it: code that names it in inline assembly does not compile there.
// CUDA's own cuda_fp4.h does compile there, at six times the instructions below and in double precision. This header
// uses the instruction where the target has it and a short rule elsewhere.
//
// When it can go. Once everything that includes it is built for suffixed Blackwell targets only.
//
// What it computes, bit for bit and for all 2^32 floats: CUDA's __nv_cvt_float_to_fp4(x, __NV_E2M1, cudaRoundNearest).
// Nearest value, ties to even; saturation at 6, also of infinities; zero keeps its sign; a NaN of either sign gives +6.
//
// The rule. The three low bits of an E2M1 value, its code, count through 0, 0.5, 1, 1.5, 2, 3, 4, 6. On [0, 6] let
//     c(y) = min(2y, y + 2, y/2 + 4).
// At each of the eight values c is the code, and it is linear from one value to the next. The midpoint of two values
// therefore maps to the midpoint of two codes, and rounding c(y) to the nearest integer, ties to even, is the rounding
// of y to the nearest value, ties to the even code. Adding 2^23 does that, because the floats from 2^23 to 2^24 are the
// integers. It may be done in each term before the minimum is taken, because rounding is monotonic; and since 2^23,
// 2^23 + 2 and 2^23 + 4 are even, a tie falls the same way in the sum as in c. The code is the sum's low byte.
//
// Compiler options do not matter. 2y is exact, and y/2 is exact wherever it decides, so a fused multiply-add and two
// operations give the same sum; no sum has a third summand that could be reassociated. A subnormal flushed to zero
// keeps its sign and has code 0 anyway. On the device no option takes away that min(NaN, 6) is 6. On the host NaN is
// recognised by an integer comparison, which -ffinite-math-only leaves alone.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define GB10_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define GB10_HOST_DEVICE inline
#endif

// nvcc 13.0 defines __CUDA_ARCH_FAMILY_SPECIFIC__ for targets that end in f or a, never for a plain one. Its value
// counts as well: it is 900 for sm_90a, which has no E2M1. __CUDA_ARCH__ would not do: it is 1210 for sm_121 and
// sm_121a alike. GB10_E2M1_SOFTWARE forces the rule, for tests and measurements.
#if defined(__CUDA_ARCH_FAMILY_SPECIFIC__) && !defined(GB10_E2M1_SOFTWARE)
#if __CUDA_ARCH_FAMILY_SPECIFIC__ >= 1000
#define GB10_E2M1_HARDWARE
#endif
#endif

namespace gb10 {
namespace detail {

// The next four functions are one instruction each on the device and have a twin in C++, so that a test on the host
// runs the expressions that the device runs.

GB10_HOST_DEVICE uint32_t bits_of(float x) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(x);
#else
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
#endif
}

// min(|x|, 6), and 6 for NaN.
GB10_HOST_DEVICE float saturated_magnitude(float x) {
#if defined(__CUDA_ARCH__)
  return fminf(fabsf(x), 6.0f);
#else
  const uint32_t magnitude = bits_of(x) & 0x7fffffffu;
  const uint32_t largest = bits_of(6.0f);
  const uint32_t bits = magnitude < largest ? magnitude : largest;
  float y;
  std::memcpy(&y, &bits, sizeof(y));
  return y;
#endif
}

// The sign of `low` in bit 15 and the sign of `high` in bit 31, where NaN is positive; the other bits are arbitrary.
// Rounding to bfloat16 keeps every sign and makes every NaN the canonical one, which is positive.
GB10_HOST_DEVICE uint32_t signs_of(float low, float high) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
#else
  const uint32_t negative_infinity = 0xff800000u;
  const uint32_t low_bits = bits_of(low) > negative_infinity ? 0 : bits_of(low);
  const uint32_t high_bits = bits_of(high) > negative_infinity ? 0 : bits_of(high);
  return (low_bits >> 16) | (high_bits & 0xffff0000u);
#endif
}

// Four of eight bytes: a's are 0 to 3, b's are 4 to 7, and the nibbles of `selector`, the lowest first, name one each.
// A nibble with bit 3 set asks for eight copies of that byte's highest bit instead.
GB10_HOST_DEVICE uint32_t pick_bytes(uint32_t a, uint32_t b, uint32_t selector) {
#if defined(__CUDA_ARCH__)
  uint32_t picked;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(picked) : "r"(a), "r"(b), "r"(selector));
  return picked;
#else
  const uint64_t source = (static_cast<uint64_t>(b) << 32) | a;
  const auto byte = [=](int place) {
    const uint32_t choice = selector >> (4 * place);
    const uint32_t value = static_cast<uint32_t>(source >> (8 * (choice & 7u))) & 0xffu;
    return ((choice & 8u) != 0 ? (value >> 7) * 0xffu : value) << (8 * place);
  };
  return byte(0) | byte(1) | byte(2) | byte(3);
#endif
}

// A word with the code of x in its low byte. The sums are positive floats, so their bits compare as they do.
GB10_HOST_DEVICE uint32_t rounded(float x) {
  constexpr float two_23 = 8388608.0f;
  const float y = saturated_magnitude(x);
  const uint32_t below_2 = bits_of(2.0f * y + two_23);
  const uint32_t below_4 = bits_of(y + (two_23 + 2.0f));
  const uint32_t above_4 = bits_of(0.5f * y + (two_23 + 4.0f));
  const uint32_t lower = below_2 < below_4 ? below_2 : below_4;
  return lower < above_4 ? lower : above_4;
}

// Four bytes, one for each value: its code.
GB10_HOST_DEVICE uint32_t four_codes(float x0, float x1, float x2, float x3) {
  return pick_bytes(pick_bytes(rounded(x0), rounded(x1), 0x0040), pick_bytes(rounded(x2), rounded(x3), 0x0040), 0x5410);
}

// Four bytes, one for each value: 0xff for a negative value, else 0x00.
GB10_HOST_DEVICE uint32_t four_signs(float x0, float x1, float x2, float x3) {
  return pick_bytes(signs_of(x0, x1), signs_of(x2, x3), 0xfdb9);
}

}  // namespace detail

// The E2M1 value nearest to x, in the low four bits.
GB10_HOST_DEVICE uint8_t float_to_e2m1(float x) {
#if defined(GB10_E2M1_HARDWARE)
  uint16_t nibble;
  asm("{\n"
      ".reg .b8 pair;\n"
      "cvt.rn.satfinite.e2m1x2.f32 pair, %2, %1;\n"
      "mov.b16 %0, {pair, 0};\n"
      "}"
      : "=h"(nibble)
      : "f"(x), "f"(0.0f));
  return static_cast<uint8_t>(nibble);
#else
  return static_cast<uint8_t>(detail::rounded(x) | ((detail::signs_of(x, 0.0f) >> 12) & 8u));
#endif
}

// Eight E2M1 values, x[0] in the lowest nibble.
GB10_HOST_DEVICE uint32_t float8_to_e2m1(const float (&x)[8]) {
#if defined(GB10_E2M1_HARDWARE)
  uint32_t packed;
  asm("{\n"
      ".reg .b8 b0, b1, b2, b3;\n"
      "cvt.rn.satfinite.e2m1x2.f32 b0, %2, %1;\n"
      "cvt.rn.satfinite.e2m1x2.f32 b1, %4, %3;\n"
      "cvt.rn.satfinite.e2m1x2.f32 b2, %6, %5;\n"
      "cvt.rn.satfinite.e2m1x2.f32 b3, %8, %7;\n"
      "mov.b32 %0, {b0, b1, b2, b3};\n"
      "}"
      : "=r"(packed)
      : "f"(x[0]), "f"(x[1]), "f"(x[2]), "f"(x[3]), "f"(x[4]), "f"(x[5]), "f"(x[6]), "f"(x[7]));
  return packed;
#else
  const uint32_t even_codes = detail::four_codes(x[0], x[2], x[4], x[6]);
  const uint32_t odd_codes = detail::four_codes(x[1], x[3], x[5], x[7]);
  const uint32_t even_signs = detail::four_signs(x[0], x[2], x[4], x[6]);
  const uint32_t odd_signs = detail::four_signs(x[1], x[3], x[5], x[7]);
  return (even_codes + odd_codes * 16u) | (even_signs & 0x08080808u) | (odd_signs & 0x80808080u);
#endif
}

// The same for values that come in pairs (CUDA's float2, or any type with members x and y): x[0].x is the lowest.
template <typename Pair>
GB10_HOST_DEVICE uint32_t float8_to_e2m1(const Pair (&x)[4]) {
  const float values[8] = {x[0].x, x[0].y, x[1].x, x[1].y, x[2].x, x[2].y, x[3].x, x[3].y};
  return float8_to_e2m1(values);
}

// Sixteen E2M1 values, x[0].x in the lowest nibble.
template <typename Pair>
GB10_HOST_DEVICE uint64_t float16_to_e2m1(const Pair (&x)[8]) {
  const Pair low[4] = {x[0], x[1], x[2], x[3]};
  const Pair high[4] = {x[4], x[5], x[6], x[7]};
  const uint32_t low_packed = float8_to_e2m1(low);
  const uint32_t high_packed = float8_to_e2m1(high);
  return (static_cast<uint64_t>(high_packed) << 32) | low_packed;
}

}  // namespace gb10

#undef GB10_HOST_DEVICE
