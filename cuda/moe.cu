// Mixture of experts: (token, slot) pairs sorted by expert, their rows gathered, the activation
// inside the experts, and the weighted sum that puts their outputs back together; gradients.
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

// silu(x) = x sigmoid(x); the exponential of a large -x is infinite, and its sigmoid 0
__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + __expf(-x)); }

// What a thread moves at once: N elements, 16 bytes where rows are whole numbers of them, else N = 1.
template <typename T, unsigned N>
struct Packs {
  struct alignas(N * sizeof(T)) Pack {
    T of[N];
  };

  static __device__ Pack load(const T* from) { return *reinterpret_cast<const Pack*>(from); }

  static __device__ void store(T* to, const Pack& pack) { *reinterpret_cast<Pack*>(to) = pack; }

  static __device__ void combine(const T* expert_out, const int* inverse, const float* weights, T* y, unsigned rows,
                                 unsigned width, unsigned tokens, unsigned slots, uint3 position) {
    const unsigned column = position.x * N, token = position.y;
    if (column >= width || token >= tokens) return;
    float sum[N] = {};
    for (unsigned k = 0; k < slots; k++) {
      const size_t pair = size_t(token) * slots + k;
      const Pack row = load(expert_out + row_of(inverse, pair, rows) * width + column);
#pragma unroll
      for (unsigned i = 0; i < N; i++) sum[i] += weights[pair] * float(row.of[i]);
    }
    Pack out;
#pragma unroll
    for (unsigned i = 0; i < N; i++) out.of[i] = T(sum[i]);
    store(y + size_t(token) * width + column, out);
  }

  static __device__ void gather(const T* x, const int* order, T* y, unsigned tokens, unsigned width, unsigned rows,
                                unsigned slots, uint3 position) {
    const unsigned column = position.x * N, row = position.y;
    if (column >= width || row >= rows) return;
    const unsigned token = unsigned(order[row]) / slots;
    Pack out;
#pragma unroll
    for (unsigned i = 0; i < N; i++) out.of[i] = T(0.0f);
    if (token < tokens) out = load(x + size_t(token) * width + column);
    store(y + size_t(row) * width + column, out);
  }

  static __device__ void forward(const T* h, T* a, unsigned rows, unsigned width, uint3 position) {
    const unsigned column = position.x * N, row = position.y;
    if (column >= width || row >= rows) return;
    const size_t at = size_t(row) * 2 * width + column;
    const Pack gates = load(h + at), ups = load(h + at + width);
    Pack out;
#pragma unroll
    for (unsigned i = 0; i < N; i++) {
      const float gate = float(gates.of[i]);
      out.of[i] = T(gate * sigmoid(gate) * float(ups.of[i]));
    }
    store(a + size_t(row) * width + column, out);
  }

  // One row; returns this thread's part of d_weights.
  static __device__ float backward(const T* g, const T* h, float weight, T* d_h, T* scaled, unsigned width,
                                   unsigned lane) {
    float sum = 0.0f;
    for (unsigned column = lane * N; column < width; column += LANES * N) {
      const Pack gates = load(h + column), ups = load(h + width + column), slopes = load(g + column);
      Pack by_gate, by_up, out;
#pragma unroll
      for (unsigned i = 0; i < N; i++) {
        const float gate = float(gates.of[i]), up = float(ups.of[i]), slope = float(slopes.of[i]);
        const float s = sigmoid(gate), act = gate * s, a = act * up;
        sum += a * slope;
        out.of[i] = T(weight * a);
        by_gate.of[i] = T(weight * slope * up * (s + act * (1.0f - s)));
        by_up.of[i] = T(weight * slope * act);
      }
      store(scaled + column, out);
      store(d_h + column, by_gate);
      store(d_h + width + column, by_up);
    }
    return sum;
  }
};

// y[token, column] = sum over k of weights[token, k] * expert_out[inverse[token, k], column]
template <typename T>
__device__ void combine_forward(const T* expert_out, const int* inverse, const float* weights, T* y, unsigned rows,
                                unsigned width, unsigned tokens, unsigned slots, uint3 position) {
  constexpr unsigned N = 16 / sizeof(T);
  if (width % N == 0)
    Packs<T, N>::combine(expert_out, inverse, weights, y, rows, width, tokens, slots, position);
  else
    Packs<T, 1>::combine(expert_out, inverse, weights, y, rows, width, tokens, slots, position);
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

constexpr unsigned TILE = 256;      // pairs that a block looks at together, one a thread
constexpr unsigned EXPERTS = 1024;  // at most, nobody included

// Experts of the pairs of two tiles in turn: a thread that is ahead fills the other one, so that one barrier a tile is
// enough.
struct Tiles {
  unsigned of[2][TILE];
};

// Pairs of each expert in the whole, blocks filled up; the row of the first one in this block's part.
struct Places {
  unsigned totals[EXPERTS], first[EXPERTS];
};

// The expert of a pair, moved into [0, last]. The one after the last expert is nobody.
__device__ inline unsigned expert_of(const int* ids, unsigned pair, unsigned last) {
  return min(unsigned(max(ids[pair], 0)), last);
}

// ranks[pair] = earlier pairs of the same expert in a part of `each` pairs, counts[part, e] = its pairs of expert e
// A block has a part, a thread an expert (more where there are more), which looks at one pair after the other: nothing
// is added in a racing order, and pairs of an expert stay in their order.
__device__ inline void count(const int* ids, int* ranks, int* counts, unsigned pairs, unsigned experts, unsigned each,
                             unsigned last, Tiles& tiles, uint3 position) {
  const unsigned lane = position.x, part = position.y, end = min((part + 1) * each, pairs);
  unsigned turn = 0;
  for (unsigned expert = lane; expert - lane <= experts; expert += TILE) {
    unsigned sum = 0;
    for (unsigned start = part * each; start < end; start += TILE, turn ^= 1) {
      if (start + lane < end) tiles.of[turn][lane] = expert_of(ids, start + lane, last);
      __syncthreads();
      const unsigned here = min(TILE, end - start);
#pragma unroll 8
      for (unsigned i = 0; i < here; i++)
        if (tiles.of[turn][i] == expert) ranks[start + i] = int(sum++);
    }
    if (expert <= experts) counts[size_t(part) * (experts + 1) + expert] = int(sum);
  }
}

// The rows of `count`'s pairs, sorted by expert: inverse[pair] = row, order[row] = pair, offsets[e] = first row of expert
// e, a multiple of `block`. Rows that fill blocks up are left as they are; nobody's pairs come last.
__device__ inline void place(const int* ids, const int* ranks, const int* counts, int* order, int* inverse, int* offsets,
                             unsigned pairs, unsigned parts, unsigned columns, unsigned each, unsigned block,
                             unsigned last, Places& places, uint3 position) {
  const unsigned lane = position.x, part = position.y, experts = columns - 1;
  for (unsigned expert = lane; expert <= experts; expert += TILE) {
    unsigned total = 0, before = 0;
#pragma unroll 16
    for (unsigned p = 0; p < parts; p++) {
      const unsigned there = unsigned(counts[size_t(p) * columns + expert]);
      total += there;
      before += p < part ? there : 0;
    }
    places.totals[expert] = (total + block - 1) / block * block;
    places.first[expert] = before;
  }
  __syncthreads();
  for (unsigned expert = lane; expert <= experts; expert += TILE) {
    unsigned start = 0;
#pragma unroll 8
    for (unsigned e = 0; e < expert; e++) start += places.totals[e];
    places.first[expert] += start;
    if (part == 0) offsets[expert] = int(start);
  }
  __syncthreads();
  for (unsigned pair = part * each + lane; pair < min((part + 1) * each, pairs); pair += TILE) {
    const int row = int(places.first[expert_of(ids, pair, last)]) + ranks[pair];
    inverse[pair] = row;
    order[row] = int(pair);
  }
}

// y[row, column] = x[order[row] / slots, column], zero where that is no token. `inverse` is there for its shape.
template <typename T>
__device__ void gather(const T* x, const int* order, const int*, T* y, unsigned tokens, unsigned width, unsigned rows,
                       unsigned slots, uint3 position) {
  constexpr unsigned N = 16 / sizeof(T);
  if (width % N == 0)
    Packs<T, N>::gather(x, order, y, tokens, width, rows, slots, position);
  else
    Packs<T, 1>::gather(x, order, y, tokens, width, rows, slots, position);
}

// a[row, column] = silu(h[row, column]) * h[row, width + column], for h (rows, 2 width)
template <typename T>
__device__ void swiglu_forward(const T* h, T* a, unsigned rows, unsigned columns, uint3 position) {
  constexpr unsigned N = 16 / sizeof(T);
  const unsigned width = columns / 2;
  if (width % N == 0)
    Packs<T, N>::forward(h, a, rows, width, position);
  else
    Packs<T, 1>::forward(h, a, rows, width, position);
}

// What the gradient of weighted experts needs, from g (rows, width), the gradient of a before the rows' weights w:
//   d_h = w times the gradient of h, scaled = w a, d_weights[row] = sum over columns of a g
// One warp works for a row, so all its threads leave here together or not at all.
template <typename T>
__device__ void swiglu_backward(const T* g, const T* h, const float* row_weights, T* d_h, T* scaled, float* d_weights,
                                unsigned rows, unsigned columns, uint3 position) {
  const unsigned width = columns / 2, lane = position.x, row = position.y;
  if (row >= rows) return;
  constexpr unsigned N = 16 / sizeof(T);
  const size_t mine = size_t(row) * width, its = size_t(row) * columns;
  const float weight = row_weights[row];
  float sum = width % N == 0 ? Packs<T, N>::backward(g + mine, h + its, weight, d_h + its, scaled + mine, width, lane)
                             : Packs<T, 1>::backward(g + mine, h + its, weight, d_h + its, scaled + mine, width, lane);
  for (unsigned step = LANES / 2; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  if (lane == 0) d_weights[row] = sum;
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

template <typename T>
__global__ void moe_swiglu_forward(const T* h, T* a, unsigned rows, unsigned columns) {
  moe::swiglu_forward(h, a, rows, columns, moe::position());
}

template <typename T>
__global__ void moe_swiglu_backward(const T* g, const T* h, const float* row_weights, T* d_h, T* scaled,
                                    float* d_weights, unsigned rows, unsigned columns) {
  moe::swiglu_backward(g, h, row_weights, d_h, scaled, d_weights, rows, columns, moe::position());
}

__global__ void moe_count(const int* ids, int* ranks, int* counts, unsigned pairs, unsigned experts, unsigned each,
                          unsigned last) {
  __shared__ moe::Tiles tiles;
  moe::count(ids, ranks, counts, pairs, experts, each, last, tiles, moe::position());
}

__global__ void moe_place(const int* ids, const int* ranks, const int* counts, int* order, int* inverse, int* offsets,
                          unsigned pairs, unsigned parts, unsigned columns, unsigned each, unsigned block,
                          unsigned last) {
  __shared__ moe::Places places;
  moe::place(ids, ranks, counts, order, inverse, offsets, pairs, parts, columns, each, block, last, places,
             moe::position());
}

template <typename T>
__global__ void moe_gather(const T* x, const int* order, const int* inverse, T* y, unsigned tokens, unsigned width,
                           unsigned rows, unsigned slots) {
  moe::gather(x, order, inverse, y, tokens, width, rows, slots, moe::position());
}
