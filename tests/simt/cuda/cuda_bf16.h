// bfloat16 of CUDA: conversions only, so that kernels compute in float. To the nearest, ties to even.
#pragma once
#include "simt_cuda.h"

struct __nv_bfloat16 {
  unsigned short bits;
  __nv_bfloat16() = default;
  SIMT_FUNC __nv_bfloat16(float f) {
    unsigned u = __builtin_bit_cast(unsigned, f);
    bits = f != f ? 0x7fff : (u + 0x7fff + (u >> 16 & 1)) >> 16;
  }
  SIMT_FUNC operator float() const { return __builtin_bit_cast(float, (unsigned)bits << 16); }
};
SIMT_TYPE(__nv_bfloat16, "bfloat16")
SIMT_FUNC float __bfloat162float(__nv_bfloat16 h) { return h; }
SIMT_FUNC __nv_bfloat16 __float2bfloat16(float f) { return f; }
