// Mixture of experts: the weighted sum that puts the experts' outputs back together, and its gradients.
//
// Twin of metal/moe.metal: the same names, the same algorithm. Every function works for one thread, which `position`
// names: x counts along a row (or the lanes of a warp), y the tokens or the (token, slot) pairs. Threads beyond the
// sizes do nothing.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace moe {

constexpr unsigned LANES = 32;  // threads of a warp

// grid.y and grid.z end at 65,535 blocks, tokens do not: blockIdx.x counts along y, blockIdx.y along x.
__device__ inline uint3 position() {
  return uint3{blockIdx.y * blockDim.x + threadIdx.x, blockIdx.x * blockDim.y + threadIdx.y, 0};
}

// The row of a pair. An index out of range is moved to the nearest row: it must not read foreign memory.
__device__ inline size_t row_of(const int* inverse, size_t pair, unsigned rows) {
  return min(unsigned(max(inverse[pair], 0)), rows - 1);
}

// y[token, column] = sum over k of weights[token, k] * expert_out[inverse[token, k], column]
template <typename T>
__device__ void combine_forward(const T* expert_out, const int* inverse, const float* weights, T* y, unsigned rows,
                                unsigned width, unsigned tokens, unsigned slots, uint3 position) {
  const unsigned column = position.x, token = position.y;
  if (column >= width || token >= tokens) return;
  float sum = 0.0f;
  for (unsigned k = 0; k < slots; k++) {
    const size_t pair = size_t(token) * slots + k;
    sum += weights[pair] * float(expert_out[row_of(inverse, pair, rows) * width + column]);
  }
  y[size_t(token) * width + column] = T(sum);
}

// d_expert_out[inverse[token, k], column] = weights[token, k] * g[token, column]
// A pair owns its row, so no two threads write one element. An index out of range owns none: clamped, it would write
// another pair's row. `expert_out` is here for its shape, as in the twin.
template <typename T>
__device__ void combine_backward_rows(const T* g, const T*, const int* inverse, const float* weights, T* d_expert_out,
                                      unsigned rows, unsigned width, unsigned tokens, unsigned slots, uint3 position) {
  const unsigned column = position.x, pair = position.y;
  if (column >= width || pair >= tokens * slots) return;
  const int row = inverse[pair];
  if (row < 0 || unsigned(row) >= rows) return;
  d_expert_out[size_t(row) * width + column] = T(weights[pair] * float(g[size_t(pair / slots) * width + column]));
}

// d_weights[token, k] = sum over columns of g[token, column] * expert_out[inverse[token, k], column]
// One warp works for a pair, so all its threads leave here together or not at all.
template <typename T>
__device__ void combine_backward_weights(const T* g, const T* expert_out, const int* inverse, float* d_weights,
                                         unsigned rows, unsigned width, unsigned tokens, unsigned slots,
                                         uint3 position) {
  const unsigned lane = position.x, pair = position.y;
  if (pair >= tokens * slots) return;
  const size_t mine = size_t(pair / slots) * width, its = row_of(inverse, pair, rows) * width;
  float sum = 0.0f;
  for (unsigned column = lane; column < width; column += LANES)
    sum += float(g[mine + column]) * float(expert_out[its + column]);
  for (unsigned step = LANES / 2; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  if (lane == 0) d_weights[pair] = sum;
}

}  // namespace moe

template <typename T>
__global__ void moe_combine_forward(const T* expert_out, const int* inverse, const float* weights, T* y, unsigned rows,
                                    unsigned width, unsigned tokens, unsigned slots) {
  moe::combine_forward(expert_out, inverse, weights, y, rows, width, tokens, slots, moe::position());
}

template <typename T>
__global__ void moe_combine_backward_rows(const T* g, const T* expert_out, const int* inverse, const float* weights,
                                          T* d_expert_out, unsigned rows, unsigned width, unsigned tokens,
                                          unsigned slots) {
  moe::combine_backward_rows(g, expert_out, inverse, weights, d_expert_out, rows, width, tokens, slots,
                             moe::position());
}

template <typename T>
__global__ void moe_combine_backward_weights(const T* g, const T* expert_out, const int* inverse, float* d_weights,
                                             unsigned rows, unsigned width, unsigned tokens, unsigned slots) {
  moe::combine_backward_weights(g, expert_out, inverse, d_weights, rows, width, tokens, slots, moe::position());
}
