// Two floats to two E2M1 nibbles, and back; no target without suffix accepts the instructions.
#include <cstdint>

extern "C" __global__ void e2m1_convert(uint8_t *packed, const float *values) {
  uint16_t result;
  asm("{ .reg .b8 pair; cvt.rn.satfinite.e2m1x2.f32 pair, %2, %1; cvt.u16.u8 %0, pair; }"
      : "=h"(result)
      : "f"(values[0]), "f"(values[1]));
  packed[0] = static_cast<uint8_t>(result);
}

extern "C" __global__ void e2m1_decode(uint32_t *halves, const uint16_t *packed) {
  asm("{ .reg .b8 pair, rest; mov.b16 {pair, rest}, %1; cvt.rn.f16x2.e2m1x2 %0, pair; }"
      : "=r"(halves[0])
      : "h"(packed[0]));
}
