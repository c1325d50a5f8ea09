// Mixture of experts: (token, slot) pairs sorted by expert, their rows gathered, the activation
// inside the experts, and the weighted sum that puts their outputs back together; gradients.
//
// Twin of cuda/moe.cu: the same names, the same algorithm. Every function works for one thread, which `position`
// names: x counts along a row (or the lanes of a simdgroup), y the tokens or the (token, slot) pairs. Threads beyond
// the sizes do nothing. Inputs are template types because MLX keeps arrays of fewer than 8 elements in the constant
// address space.
#include <metal_stdlib>
using namespace metal;

namespace moe {

constant constexpr uint LANES = 32;  // threads of a simdgroup on every Apple GPU

// The row of a pair. An index out of range is moved to the nearest row: it must not read foreign memory.
template <typename Index>
size_t row_of(Index inverse, size_t pair, uint rows) {
  return min(uint(max(inverse[pair], 0)), rows - 1);
}

// y[token, column] = sum over k of weights[token, k] * expert_out[inverse[token, k], column]
template <typename Rows, typename Index, typename Weights, typename T>
void combine_forward(Rows expert_out, Index inverse, Weights weights, device T* y, uint rows, uint width, uint tokens,
                     uint slots, uint3 position) {
  const uint column = position.x, token = position.y;
  if (column >= width || token >= tokens) return;
  float sum = 0.0f;
  for (uint k = 0; k < slots; k++) {
    const size_t pair = size_t(token) * slots + k;
    sum += weights[pair] * float(expert_out[row_of(inverse, pair, rows) * width + column]);
  }
  y[size_t(token) * width + column] = T(sum);
}

// d_expert_out[inverse[token, k], column] = weights[token, k] * g[token, column]
// A pair owns its row, so no two threads write one element. An index out of range owns none: clamped, it would write
// another pair's row. `expert_out` is here for its shape.
template <typename Grad, typename Rows, typename Index, typename Weights, typename T>
void combine_backward_rows(Grad g, Rows expert_out, Index inverse, Weights weights, device T* d_expert_out, uint rows,
                           uint width, uint tokens, uint slots, uint3 position) {
  const uint column = position.x, pair = position.y;
  if (column >= width || pair >= tokens * slots) return;
  const int row = inverse[pair];
  if (row < 0 || uint(row) >= rows) return;
  d_expert_out[size_t(row) * width + column] = T(weights[pair] * float(g[size_t(pair / slots) * width + column]));
}

// d_weights[token, k] = sum over columns of g[token, column] * expert_out[inverse[token, k], column]
// One simdgroup works for a pair, so all its threads leave here together or not at all.
template <typename Grad, typename Rows, typename Index>
void combine_backward_weights(Grad g, Rows expert_out, Index inverse, device float* d_weights, uint rows, uint width,
                              uint tokens, uint slots, uint3 position) {
  const uint lane = position.x, pair = position.y;
  if (pair >= tokens * slots) return;
  const size_t mine = size_t(pair / slots) * width, its = row_of(inverse, pair, rows) * width;
  float sum = 0.0f;
  for (uint column = lane; column < width; column += LANES)
    sum += float(g[mine + column]) * float(expert_out[its + column]);
  sum = simd_sum(sum);
  if (lane == 0) d_weights[pair] = sum;
}

constant constexpr uint TILE = 256;     // pairs that a threadgroup looks at together, one a thread
constant constexpr uint EXPERTS = 1024; // at most, nobody included

// Experts of the pairs of two tiles in turn: a thread that is ahead fills the other one, so that one barrier a tile is
// enough.
struct Tiles {
  uint of[2][TILE];
};

// Pairs of each expert in the whole, blocks filled up; the row of the first one in this threadgroup's part.
struct Places {
  uint totals[EXPERTS], first[EXPERTS];
};

// The expert of a pair, moved into [0, last]. The one after the last expert is nobody.
template <typename Ids>
uint expert_of(Ids ids, uint pair, uint last) {
  return min(uint(max(ids[pair], 0)), last);
}

// ranks[pair] = earlier pairs of the same expert in a part of `each` pairs, counts[part, e] = its pairs of expert e
// A threadgroup has a part, a thread an expert (more where there are more), which looks at one pair after the other:
// nothing is added in a racing order, and pairs of an expert stay in their order.
template <typename Ids>
void count(Ids ids, device int* ranks, device int* counts, uint pairs, uint experts, uint each, uint last,
           threadgroup Tiles& tiles, uint3 position) {
  const uint lane = position.x, part = position.y, end = min((part + 1) * each, pairs);
  uint turn = 0;
  for (uint expert = lane; expert - lane <= experts; expert += TILE) {
    uint sum = 0;
    for (uint start = part * each; start < end; start += TILE, turn ^= 1) {
      if (start + lane < end) tiles.of[turn][lane] = expert_of(ids, start + lane, last);
      threadgroup_barrier(mem_flags::mem_threadgroup);
      const uint here = min(TILE, end - start);
      for (uint i = 0; i < here; i++)
        if (tiles.of[turn][i] == expert) ranks[start + i] = int(sum++);
    }
    if (expert <= experts) counts[size_t(part) * (experts + 1) + expert] = int(sum);
  }
}

// The rows of `count`'s pairs, sorted by expert: inverse[pair] = row, order[row] = pair, offsets[e] = first row of expert
// e, a multiple of `block`. Rows that fill blocks up are left as they are; nobody's pairs come last.
template <typename Ids, typename Ranks, typename Counts>
void place(Ids ids, Ranks ranks, Counts counts, device int* order, device int* inverse, device int* offsets, uint pairs,
           uint parts, uint columns, uint each, uint block, uint last, threadgroup Places& places, uint3 position) {
  const uint lane = position.x, part = position.y, experts = columns - 1;
  for (uint expert = lane; expert <= experts; expert += TILE) {
    uint total = 0, before = 0;
    for (uint p = 0; p < parts; p++) {
      const uint there = uint(counts[size_t(p) * columns + expert]);
      total += there;
      before += p < part ? there : 0;
    }
    places.totals[expert] = (total + block - 1) / block * block;
    places.first[expert] = before;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint expert = lane; expert <= experts; expert += TILE) {
    uint start = 0;
    for (uint e = 0; e < expert; e++) start += places.totals[e];
    places.first[expert] += start;
    if (part == 0) offsets[expert] = int(start);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint pair = part * each + lane; pair < min((part + 1) * each, pairs); pair += TILE) {
    const int row = int(places.first[expert_of(ids, pair, last)]) + ranks[pair];
    inverse[pair] = row;
    order[row] = int(pair);
  }
}

// y[row, column] = x[order[row] / slots, column], zero where that is no token. `inverse` is here for its shape.
template <typename Rows, typename Index, typename Inverse, typename T>
void gather(Rows x, Index order, Inverse inverse, device T* y, uint tokens, uint width, uint rows, uint slots,
            uint3 position) {
  const uint column = position.x, row = position.y;
  if (column >= width || row >= rows) return;
  const uint token = uint(order[row]) / slots;
  y[size_t(row) * width + column] = token < tokens ? T(x[size_t(token) * width + column]) : T(0.0f);
}

// silu(x) = x sigmoid(x); the exponential of a large -x is infinite, and its sigmoid 0
inline float sigmoid(float x) { return 1.0f / (1.0f + precise::exp(-x)); }

// a[row, column] = silu(h[row, column]) * h[row, width + column], for h (rows, 2 width)
template <typename Hidden, typename T>
void swiglu_forward(Hidden h, device T* a, uint rows, uint columns, uint3 position) {
  const uint width = columns / 2, column = position.x, row = position.y;
  if (column >= width || row >= rows) return;
  const size_t at = size_t(row) * columns + column;
  const float gate = float(h[at]), up = float(h[at + width]);
  a[size_t(row) * width + column] = T(gate * sigmoid(gate) * up);
}

// What the gradient of weighted experts needs, from g (rows, width), the gradient of a before the rows' weights w:
//   d_h = w times the gradient of h, scaled = w a, d_weights[row] = sum over columns of a g
// One simdgroup works for a row, so all its threads leave here together or not at all.
template <typename Grad, typename Hidden, typename Weights, typename T>
void swiglu_backward(Grad g, Hidden h, Weights row_weights, device T* d_h, device T* scaled, device float* d_weights,
                     uint rows, uint columns, uint3 position) {
  const uint width = columns / 2, lane = position.x, row = position.y;
  if (row >= rows) return;
  const float weight = row_weights[row];
  const size_t mine = size_t(row) * width, its = size_t(row) * columns;
  float sum = 0.0f;
  for (uint column = lane; column < width; column += LANES) {
    const float gate = float(h[its + column]), up = float(h[its + width + column]), slope = float(g[mine + column]);
    const float s = sigmoid(gate), act = gate * s, a = act * up;
    sum += a * slope;
    scaled[mine + column] = T(weight * a);
    d_h[its + column] = T(weight * slope * up * (s + act * (1.0f - s)));
    d_h[its + width + column] = T(weight * slope * act);
  }
  sum = simd_sum(sum);
  if (lane == 0) d_weights[row] = sum;
}

}  // namespace moe
