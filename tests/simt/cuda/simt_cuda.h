// CUDA C++ as far as our kernels use it, for clang on the CPU: what NVRTC gives a kernel without includes.
//
// Functions are `nodebug`, so that what they do counts as the kernel's line that calls them. Names that a kernel
// needs and that are missing here are added here.
#pragma once
#include "../executor.h"

#define __global__ static  // so that a file's other kernels, and their shared arrays, are left out
#define __device__
#define __constant__ static const
#define __shared__ static  // cuda.py rewrites `extern __shared__`
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define SIMT_FUNC __forceinline__ __attribute__((nodebug, convergent, nomerge))

typedef __SIZE_TYPE__ size_t;
struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x, y, z; };
// Vectors are loaded whole, so that misaligned loads are seen. CUDA's have no arithmetic.
#define SIMT_VECTORS(T, name)                                                                   \
  typedef T name##2 __attribute__((ext_vector_type(2)));                                        \
  typedef T name##4 __attribute__((ext_vector_type(4)));                                        \
  SIMT_FUNC name##2 make_##name##2(T x, T y) { return name##2{x, y}; }                          \
  SIMT_FUNC name##4 make_##name##4(T x, T y, T z, T w) { return name##4{x, y, z, w}; }
SIMT_VECTORS(float, float) SIMT_VECTORS(int, int) SIMT_VECTORS(unsigned, uint)
#undef SIMT_VECTORS

#define threadIdx (uint3{simt_id(0), simt_id(1), simt_id(2)})
#define blockIdx (uint3{simt_id(4), simt_id(5), simt_id(6)})
#define blockDim (dim3{simt_id(8), simt_id(9), simt_id(10)})
#define gridDim (dim3{simt_id(16), simt_id(17), simt_id(18)})

// ---------------------------------------------------------------- synchronisation, warps
SIMT_FUNC void __syncthreads() { simt_barrier(3); }
SIMT_FUNC void __syncwarp() { simt_simdgroup_barrier(3); }

template <class T> struct simt_lanes {  // what each lane gave; lanes that do not exist: ones in every bit
  const char *slots;
  SIMT_FUNC T operator[](unsigned lane) const { return *(const T *)(slots + 16 * (lane & 31)); }
};
template <class T> SIMT_FUNC simt_lanes<T> simt_all(unsigned mask, T v) {
  if (mask != 0xffffffffu) simt_refuse("a warp operation on a part of the warp");
  return {(const char *)simt_exchange(&v, sizeof v)};
}
template <class T> SIMT_FUNC T __shfl_sync(unsigned mask, T v, int lane, int width = 32) {
  return simt_all(mask, v)[(simt_id(21) & -width) | (lane & (width - 1))];
}
template <class T> SIMT_FUNC T __shfl_xor_sync(unsigned mask, T v, int flip, int width = 32) {
  const int other = simt_id(21) ^ flip;
  const T moved = simt_all(mask, v)[other];
  return other < (int)((simt_id(21) & -width) + width) ? moved : v;
}
template <class T> SIMT_FUNC T __shfl_up_sync(unsigned mask, T v, unsigned delta, int width = 32) {
  const T moved = simt_all(mask, v)[simt_id(21) - delta];
  return (simt_id(21) & (width - 1)) >= delta ? moved : v;
}
template <class T> SIMT_FUNC T __shfl_down_sync(unsigned mask, T v, unsigned delta, int width = 32) {
  const T moved = simt_all(mask, v)[simt_id(21) + delta];
  return (simt_id(21) & (width - 1)) + delta < (unsigned)width ? moved : v;
}
SIMT_FUNC unsigned __ballot_sync(unsigned mask, int vote) {
  const simt_lanes<int> all = simt_all(mask, (int)(vote != 0));
  unsigned votes = 0;
  for (unsigned i = 0; i < 32; i++) votes |= (unsigned)(all[i] == 1) << i;
  return votes;
}

// ---------------------------------------------------------------- numbers
#define SIMT_MIN_MAX(T)                                \
  SIMT_FUNC T min(T a, T b) { return b < a ? b : a; }  \
  SIMT_FUNC T max(T a, T b) { return a < b ? b : a; }
SIMT_MIN_MAX(int) SIMT_MIN_MAX(unsigned) SIMT_MIN_MAX(size_t)
#undef SIMT_MIN_MAX
extern "C" {
float sinf(float), cosf(float), expf(float), exp2f(float), logf(float), log2f(float), powf(float, float), tanhf(float);
float erff(float), sqrtf(float), fabsf(float), fminf(float, float), fmaxf(float, float), copysignf(float, float);
float rintf(float);
double sin(double), cos(double);
}
SIMT_FUNC float fmaf(float a, float b, float c) { return a * b + c; }
SIMT_FUNC float rsqrtf(float x) { return 1.0f / sqrtf(x); }
SIMT_FUNC float __expf(float x) { return expf(x); }
SIMT_FUNC void sincosf(float x, float *s, float *c) { *s = sinf(x), *c = cosf(x); }
SIMT_FUNC void __sincosf(float x, float *s, float *c) { sincosf(x, s, c); }
SIMT_FUNC void sincospif(float x, float *s, float *c) {
  const double turns = (double)(x - 2.0f * rintf(0.5f * x)) * 3.14159265358979323846;
  *s = (float)sin(turns), *c = (float)cos(turns);
}
SIMT_FUNC float cospif(float x) { float s, c; return sincospif(x, &s, &c), c; }
SIMT_FUNC float sinpif(float x) { float s, c; return sincospif(x, &s, &c), s; }
SIMT_FUNC unsigned __float_as_uint(float x) { return __builtin_bit_cast(unsigned, x); }
SIMT_FUNC float __uint_as_float(unsigned x) { return __builtin_bit_cast(float, x); }
SIMT_FUNC int __popc(unsigned x) { return __builtin_popcount(x); }
SIMT_FUNC int __ffs(int x) { return __builtin_ffs(x); }
SIMT_FUNC int __clz(int x) { return x ? __builtin_clz(x) : 32; }
SIMT_FUNC unsigned __brev(unsigned x) { return __builtin_bitreverse32(x); }
template <class T> SIMT_FUNC T __ldg(const T *p) { return *p; }

// ---------------------------------------------------------------- the way in
// SIMT_ENTRY(kernel) makes simt_entry, which calls the kernel, and simt_parameters, the names of its parameters'
// types. An argument is given as an address: of an array for a pointer, of the value for a number.
template <class T> struct simt_type;
#define SIMT_TYPE(T, text)                                                                   \
  template <> struct simt_type<T> { static constexpr const char *name = text; };             \
  template <> struct simt_type<T *> { static constexpr const char *name = text "*"; };       \
  template <> struct simt_type<const T *> { static constexpr const char *name = "const " text "*"; };
SIMT_TYPE(float, "float32") SIMT_TYPE(int, "int32") SIMT_TYPE(unsigned, "uint32") SIMT_TYPE(long long, "int64")
SIMT_TYPE(size_t, "uint64") SIMT_TYPE(bool, "bool") SIMT_TYPE(float2, "complex64")

#define SIMT_UNCHECKED __attribute__((no_sanitize("thread")))
template <class P> struct simt_argument { SIMT_UNCHECKED static P get(void *a) { return *(P *)a; } };
template <class T> struct simt_argument<T *> { SIMT_UNCHECKED static T *get(void *a) { return (T *)a; } };
template <int... I> struct simt_indices {};
template <class S, S... I> using simt_from_sequence = simt_indices<I...>;
template <class... P, int... I>
SIMT_UNCHECKED void simt_call(void (*kernel)(P...), void **a, simt_indices<I...>) {
  kernel(simt_argument<P>::get(a[I])...);
}
template <class... P>
SIMT_UNCHECKED void simt_call(void (*kernel)(P...), void **a) {
  simt_call(kernel, a, __make_integer_seq<simt_from_sequence, int, sizeof...(P)>());
}
template <class... P> const char *const *simt_parameters_of(void (*)(P...)) {
  static const char *const names[] = {simt_type<P>::name..., nullptr};
  return names;
}
#define SIMT_ENTRY(...)                                                                          \
  extern "C" SIMT_UNCHECKED void simt_entry(void **a) { simt_call(__VA_ARGS__, a); }             \
  extern "C" const char *const *simt_parameters() { return simt_parameters_of(__VA_ARGS__); }
