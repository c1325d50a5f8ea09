// The router of a mixture of experts: the choice of the k best, their weights, and gradients.
//
// Twin of cuda/route.cu: the same names, the same algorithm. One simdgroup works for a row (a token), so all its threads
// leave a function together or not at all: position.x is the lane, position.y the row. Inputs are template types because
// MLX keeps arrays of fewer than 8 elements in the constant address space.
#include <metal_stdlib>
using namespace metal;

namespace route {

constant constexpr uint LANES = 32;  // threads of a simdgroup on every Apple GPU
constant constexpr float LEAST = -3.402823466e38f;  // for which NaN and minus infinity stand in the order of a choice
constant constexpr float NEVER = -1e30f;            // the value of an expert whose logit is not finite

// ids[k] = index of the k-th largest value of a row, by falling value, ties to the lower index. A round looks at what
// comes after the last winner in that order, so nothing needs to be remembered of the others.
template <typename Values>
inline void choice(thread const Values& values, device int* ids, uint width, uint slots, uint lane) {
  float last = INFINITY;
  uint place = 0;  // the next index that may have the value `last`
  for (uint k = 0; k < slots; k++) {
    float best = -INFINITY;
    uint where = width;
    for (uint i = lane; i < width; i += LANES) {
      const float value = values.at(i), v = value > LEAST ? value : LEAST;
      if ((v < last || (v == last && i >= place)) && v > best) best = v, where = i;
    }
    const float most = simd_max(best);
    where = simd_min(best == most ? where : width);
    last = most, place = where + 1;
    if (lane == 0) ids[k] = int(where);
  }
}

template <typename Rows>
struct Plain {
  Rows row;
  float at(uint i) const thread { return float(row[i]); }
};

// ids[row, k] of x[row]
template <typename Rows>
void topk(Rows x, device int* ids, uint rows, uint width, uint slots, uint3 position) {
  if (position.y >= rows) return;
  const Plain<Rows> values = {x + size_t(position.y) * width};
  choice(values, ids + size_t(position.y) * slots, width, slots, position.x);
}

inline bool is_finite(float z) { return abs(z) <= -LEAST; }

// Softmax over the finite logits of a row, zero for the others.
template <typename Row>
struct Softmax {
  Row row;
  float most, share;  // the largest logit, 1 / sum of exp(z - most)
  float at(uint i) const thread { return is_finite(row[i]) ? precise::exp(row[i] - most) * share : 0.0f; }
};

template <typename Row>
inline Softmax<Row> softmax(Row row, uint width, uint lane) {
  float most = LEAST, sum = 0.0f;
  for (uint i = lane; i < width; i += LANES)
    if (is_finite(row[i])) most = max(most, row[i]);
  most = simd_max(most);
  for (uint i = lane; i < width; i += LANES)
    if (is_finite(row[i])) sum += precise::exp(row[i] - most);
  sum = simd_sum(sum);
  return {row, most, sum > 0.0f ? 1.0f / sum : 0.0f};
}

template <typename Row, typename Bias>
struct Biased {
  Softmax<Row> scores;
  Bias bias;
  float at(uint i) const thread { return is_finite(scores.row[i]) ? scores.at(i) + bias[i] : NEVER; }
};

// ids[row, k] of softmax(z[row]) + bias
template <typename Logits, typename Bias>
void choose(Logits z, Bias bias, device int* ids, uint rows, uint width, uint slots, uint3 position) {
  if (position.y >= rows) return;
  const Biased<Logits, Bias> values = {softmax(z + size_t(position.y) * width, width, position.x), bias};
  choice(values, ids + size_t(position.y) * slots, width, slots, position.x);
}

// An index out of range is moved to the nearest: it must not read foreign memory.
template <typename Ids>
inline uint index_of(Ids ids, size_t at, uint width) { return min(uint(max(ids[at], 0)), width - 1); }

// scores[row] = softmax(z[row]), weights[row, k] = scale s_k, over the sum of all s_k plus eps if `normalize`, where s_k is
// the score of ids[row, k]
template <typename Logits, typename Ids>
void weigh(Logits z, Ids ids, device float* weights, device float* scores, uint rows, uint width, uint slots,
           uint normalize, float eps, float scale, uint3 position) {
  const uint lane = position.x;
  if (position.y >= rows) return;
  const size_t mine = size_t(position.y) * width, first = size_t(position.y) * slots;
  const Softmax<Logits> all = softmax(z + mine, width, lane);
  for (uint i = lane; i < width; i += LANES) scores[mine + i] = all.at(i);
  float sum = 0.0f;
  for (uint k = lane; k < slots; k += LANES) sum += all.at(index_of(ids, first + k, width));
  sum = simd_sum(sum);
  const float factor = normalize ? scale / (sum + eps) : scale;
  for (uint k = lane; k < slots; k += LANES) weights[first + k] = factor * all.at(index_of(ids, first + k, width));
}

// d_z of `weigh` for the gradients g of its weights and g_scores of its scores; experts of a row are distinct.
// The slope of a slot's score is a (g_k - b), that of the softmax s (slope - <s, slope>).
template <typename Grad, typename GradScores, typename Ids, typename Scores>
void weigh_grad(Grad g, GradScores g_scores, Ids ids, Scores scores, device float* d_z, uint rows, uint slots, uint width,
                uint normalize, float eps, float scale, uint3 position) {
  const uint lane = position.x;
  if (position.y >= rows) return;
  const size_t mine = size_t(position.y) * width, first = size_t(position.y) * slots;
  float sum = 0.0f, along = 0.0f;
  for (uint k = lane; k < slots; k += LANES) {
    const float score = scores[mine + index_of(ids, first + k, width)];
    sum += score;
    along += g[first + k] * score;
  }
  sum = simd_sum(sum);
  along = simd_sum(along);
  const float a = normalize ? scale / (sum + eps) : scale, b = normalize ? along / (sum + eps) : 0.0f;
  float dot = 0.0f;
  for (uint i = lane; i < width; i += LANES) dot += g_scores[mine + i] * scores[mine + i];
  dot = simd_sum(dot) + a * (along - b * sum);
  for (uint i = lane; i < width; i += LANES) {
    float slope = g_scores[mine + i];
    for (uint k = 0; k < slots; k++)
      if (index_of(ids, first + k, width) == i) slope += a * (g[first + k] - b);
    d_z[mine + i] = scores[mine + i] * (slope - dot);
  }
}

}  // namespace route
