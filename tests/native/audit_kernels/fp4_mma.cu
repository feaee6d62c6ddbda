// One block-scaled FP4 matrix product where the target has it; elsewhere the complaint that CUTLASS leaves behind.
#include <cstdint>
#include <cstdio>

extern "C" __global__ void fp4_mma(float *d, const uint32_t *a, const uint32_t *b, const uint32_t *scale) {
#ifdef __CUDA_ARCH_FAMILY_SPECIFIC__
  float c[4] = {};
  asm volatile(
      "mma.sync.aligned.m16n8k64.row.col.kind::mxf4nvf4.block_scale.scale_vec::4X.f32.e2m1.e2m1.f32.ue4m3 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3}, {%10}, {%12, %12}, {%11}, {%12, %12};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(scale[0]), "r"(scale[1]),
        "h"(static_cast<uint16_t>(0)));
  for (int i = 0; i < 4; ++i) d[i] = c[i];
#else
  printf("ERROR : Arch conditional MMA instruction used without targeting appropriate compute capability. Aborting.\n");
  __trap();
#endif
}
