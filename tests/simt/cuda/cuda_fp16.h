// Half precision of CUDA: conversions only, so that kernels compute in float.
#pragma once
#include "simt_cuda.h"

struct __half {
  _Float16 value;
  __half() = default;
  SIMT_FUNC __half(float f) : value((_Float16)f) {}
  SIMT_FUNC operator float() const { return (float)value; }
};
SIMT_TYPE(__half, "float16")
SIMT_FUNC float __half2float(__half h) { return h; }
SIMT_FUNC __half __float2half(float f) { return f; }
