// CUDA C++ as far as our kernels use it, for clang on the CPU: what NVRTC gives a kernel without includes.
//
// Functions are `nodebug`, so that what they do counts as the kernel's line that calls them. Names that a kernel
// needs and that are missing here are added here.
#pragma once
#include "../executor.h"

#define __global__
#define __device__
#define __shared__ static
#define __forceinline__ inline __attribute__((always_inline))
#define SIMT_FUNC __forceinline__ __attribute__((nodebug, convergent, nomerge))

typedef __SIZE_TYPE__ size_t;
struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x, y, z; };
typedef float float2 __attribute__((ext_vector_type(2)));  // loaded whole, so that misaligned loads are seen
typedef float float4 __attribute__((ext_vector_type(4)));

#define threadIdx (uint3{simt_id(0), simt_id(1), simt_id(2)})
#define blockIdx (uint3{simt_id(3), simt_id(4), simt_id(5)})
#define blockDim (dim3{simt_id(6), simt_id(7), simt_id(8)})

SIMT_FUNC void __syncthreads() { simt_barrier(3); }
SIMT_FUNC float __shfl_xor_sync(unsigned, float v, int mask) {
  const char *slots = (const char *)simt_exchange(&v, sizeof v);
  return *(const float *)(slots + 16 * (simt_id(9) ^ mask));
}

SIMT_FUNC int min(int a, int b) { return b < a ? b : a; }
SIMT_FUNC int max(int a, int b) { return a < b ? b : a; }
SIMT_FUNC unsigned min(unsigned a, unsigned b) { return b < a ? b : a; }

// ---------------------------------------------------------------- the way in
// SIMT_ENTRY(n, kernel) makes simt_entry_n, which calls the kernel, and simt_parameters_n, the names of its
// parameters' types. An argument is given as an address: of an array for a pointer, of the value for a number.
template <class T> struct simt_type;
#define SIMT_TYPE(T, text)                                                                   \
  template <> struct simt_type<T> { static constexpr const char *name = text; };             \
  template <> struct simt_type<T *> { static constexpr const char *name = text "*"; };       \
  template <> struct simt_type<const T *> { static constexpr const char *name = "const " text "*"; };
SIMT_TYPE(float, "float32") SIMT_TYPE(int, "int32") SIMT_TYPE(unsigned, "uint32")

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
template <class... P> const char *const *simt_parameters(void (*)(P...)) {
  static const char *const names[] = {simt_type<P>::name..., nullptr};
  return names;
}
#define SIMT_ENTRY(n, ...)                                                                       \
  extern "C" SIMT_UNCHECKED void simt_entry_##n(void **a) { simt_call(__VA_ARGS__, a); }         \
  extern "C" const char *const *simt_parameters_##n() { return simt_parameters(__VA_ARGS__); }
