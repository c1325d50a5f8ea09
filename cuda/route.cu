// The router of a mixture of experts: the choice of the k best, their weights, and gradients.
//
// Twin of metal/route.metal: the same names, the same algorithm. One warp works for a row (a token), so all its threads
// leave a function together or not at all: position.x is the lane, position.y the row.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace route {

constexpr unsigned LANES = 32;            // threads of a warp
constexpr float LEAST = -3.402823466e38f;  // for which NaN and minus infinity stand in the order of a choice
constexpr float NEVER = -1e30f;            // the value of an expert whose logit is not finite

// grid.y ends at 65,535 blocks, rows do not: blockIdx.x counts along y.
__device__ inline uint3 position() { return uint3{threadIdx.x, blockIdx.x * blockDim.y + threadIdx.y, 0}; }

__device__ inline float warp_sum(float x) {
  for (unsigned step = LANES / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}

// ids[k] = index of the k-th largest value of a row, by falling value, ties to the lower index. A round looks at what
// comes after the last winner in that order, so nothing needs to be remembered of the others.
template <class Values>
__device__ inline void choice(const Values& values, int* ids, unsigned width, unsigned slots, unsigned lane) {
  const float infinity = __uint_as_float(0x7f800000u);
  float last = infinity;
  unsigned place = 0;  // the next index that may have the value `last`
  for (unsigned k = 0; k < slots; k++) {
    float best = -infinity;
    unsigned where = width;
    for (unsigned i = lane; i < width; i += LANES) {
      const float value = values.at(i), v = value > LEAST ? value : LEAST;
      if ((v < last || (v == last && i >= place)) && v > best) best = v, where = i;
    }
    for (unsigned step = LANES / 2; step > 0; step /= 2) {
      const float other = __shfl_xor_sync(0xffffffffu, best, step);
      const unsigned its = __shfl_xor_sync(0xffffffffu, where, step);
      if (other > best || (other == best && its < where)) best = other, where = its;
    }
    last = best, place = where + 1;
    if (lane == 0) ids[k] = int(where);
  }
}

template <typename T>
struct Plain {
  const T* row;
  __device__ float at(unsigned i) const { return float(row[i]); }
};

// ids[row, k] of x[row]
template <typename T>
__device__ void topk(const T* x, int* ids, unsigned rows, unsigned width, unsigned slots, uint3 position) {
  if (position.y >= rows) return;
  const Plain<T> values = {x + size_t(position.y) * width};
  choice(values, ids + size_t(position.y) * slots, width, slots, position.x);
}

__device__ inline bool is_finite(float z) { return fabsf(z) <= -LEAST; }

// Softmax over the finite logits of a row, zero for the others.
struct Softmax {
  const float* row;
  float most, share;  // the largest logit, 1 / sum of exp(z - most)
  __device__ float at(unsigned i) const { return is_finite(row[i]) ? expf(row[i] - most) * share : 0.0f; }
};

__device__ inline Softmax softmax(const float* row, unsigned width, unsigned lane) {
  float most = LEAST, sum = 0.0f;
  for (unsigned i = lane; i < width; i += LANES)
    if (is_finite(row[i])) most = fmaxf(most, row[i]);
  for (unsigned step = LANES / 2; step > 0; step /= 2) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, step));
  for (unsigned i = lane; i < width; i += LANES)
    if (is_finite(row[i])) sum += expf(row[i] - most);
  sum = warp_sum(sum);
  return {row, most, sum > 0.0f ? 1.0f / sum : 0.0f};
}

struct Biased {
  Softmax scores;
  const float* bias;
  __device__ float at(unsigned i) const { return is_finite(scores.row[i]) ? scores.at(i) + bias[i] : NEVER; }
};

// ids[row, k] of softmax(z[row]) + bias
__device__ inline void choose(const float* z, const float* bias, int* ids, unsigned rows, unsigned width, unsigned slots,
                              uint3 position) {
  if (position.y >= rows) return;
  const Biased values = {softmax(z + size_t(position.y) * width, width, position.x), bias};
  choice(values, ids + size_t(position.y) * slots, width, slots, position.x);
}

// An index out of range is moved to the nearest: it must not read foreign memory.
__device__ inline unsigned index_of(const int* ids, size_t at, unsigned width) {
  return min(unsigned(max(ids[at], 0)), width - 1);
}

// scores[row] = softmax(z[row]), weights[row, k] = scale s_k, over the sum of all s_k plus eps if `normalize`, where s_k is
// the score of ids[row, k]
__device__ inline void weigh(const float* z, const int* ids, float* weights, float* scores, unsigned rows, unsigned width,
                             unsigned slots, unsigned normalize, float eps, float scale, uint3 position) {
  const unsigned lane = position.x;
  if (position.y >= rows) return;
  const size_t mine = size_t(position.y) * width, first = size_t(position.y) * slots;
  const Softmax all = softmax(z + mine, width, lane);
  for (unsigned i = lane; i < width; i += LANES) scores[mine + i] = all.at(i);
  float sum = 0.0f;
  for (unsigned k = lane; k < slots; k += LANES) sum += all.at(index_of(ids, first + k, width));
  sum = warp_sum(sum);
  const float factor = normalize ? scale / (sum + eps) : scale;
  for (unsigned k = lane; k < slots; k += LANES) weights[first + k] = factor * all.at(index_of(ids, first + k, width));
}

// d_z of `weigh` for the gradients g of its weights and g_scores of its scores; experts of a row are distinct.
// The slope of a slot's score is a (g_k - b), that of the softmax s (slope - <s, slope>).
__device__ inline void weigh_grad(const float* g, const float* g_scores, const int* ids, const float* scores, float* d_z,
                                  unsigned rows, unsigned slots, unsigned width, unsigned normalize, float eps,
                                  float scale, uint3 position) {
  const unsigned lane = position.x;
  if (position.y >= rows) return;
  const size_t mine = size_t(position.y) * width, first = size_t(position.y) * slots;
  float sum = 0.0f, along = 0.0f;
  for (unsigned k = lane; k < slots; k += LANES) {
    const float score = scores[mine + index_of(ids, first + k, width)];
    sum += score;
    along += g[first + k] * score;
  }
  sum = warp_sum(sum);
  along = warp_sum(along);
  const float a = normalize ? scale / (sum + eps) : scale, b = normalize ? along / (sum + eps) : 0.0f;
  float dot = 0.0f;
  for (unsigned i = lane; i < width; i += LANES) dot += g_scores[mine + i] * scores[mine + i];
  dot = warp_sum(dot) + a * (along - b * sum);
  for (unsigned i = lane; i < width; i += LANES) {
    float slope = g_scores[mine + i];
    for (unsigned k = 0; k < slots; k++)
      if (index_of(ids, first + k, width) == i) slope += a * (g[first + k] - b);
    d_z[mine + i] = scores[mine + i] * (slope - dot);
  }
}

}  // namespace route

template <typename T>
__global__ void route_topk(const T* x, int* ids, unsigned rows, unsigned width, unsigned slots) {
  route::topk(x, ids, rows, width, slots, route::position());
}

__global__ void route_choose(const float* z, const float* bias, int* ids, unsigned rows, unsigned width,
                             unsigned slots) {
  route::choose(z, bias, ids, rows, width, slots, route::position());
}

__global__ void route_weigh(const float* z, const int* ids, float* weights, float* scores, unsigned rows, unsigned width,
                            unsigned slots, unsigned normalize, float eps, float scale) {
  route::weigh(z, ids, weights, scores, rows, width, slots, normalize, eps, scale, route::position());
}

__global__ void route_weigh_grad(const float* g, const float* g_scores, const int* ids, const float* scores, float* d_z,
                                 unsigned rows, unsigned slots, unsigned width, unsigned normalize, float eps,
                                 float scale) {
  route::weigh_grad(g, g_scores, ids, scores, d_z, rows, slots, width, normalize, eps, scale, route::position());
}
