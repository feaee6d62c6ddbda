#include <cuda_bf16.h>
#include <cuda_fp4.h>

#include "converters.h"

extern "C" void reference(const float* values, size_t count, uint8_t* nearest, uint8_t* negative) {
  for (size_t i = 0; i < count; ++i) {
    nearest[i] = __nv_cvt_float_to_fp4(values[i], __NV_E2M1, cudaRoundNearest);
    negative[i] = __bfloat16_as_ushort(__float2bfloat16_rn(values[i])) >> 15;
  }
}
