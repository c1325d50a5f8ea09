// Depthwise convolution of few taps, directly: y = q * act(bias + sum over i of w[i] (u v)[t - past + i]), and its gradients.
//
// Twin of cuda/shortconv.cu: the same names, the same algorithm. A threadgroup of 8 x 16 threads works on a tile of 64 steps and
// 16 channels. The tile lies in threadgroup memory in float32, with what the window needs around it, so that inputs and
// outputs are read and written along whichever of their axes is contiguous, and nothing is transposed or copied before.
// A thread holds 8 neighbouring steps of one channel, over which taps and inputs slide: two numbers are read for 8 products.
//
// The window of a channel is made of a filter of the past (lags 0, 1, ...), one of the future (0, -1, ...) and a skip at
// lag 0. None of its taps meets a step that it does not reach, so that what is not finite stays within their reach.
// Inputs are template types because MLX keeps arrays of fewer than 8 elements in the constant address space.
#include <metal_stdlib>
using namespace metal;

namespace shortconv {

constant constexpr int STEPS = 8;             // of a thread
constant constexpr int LANES = 16;            // channels of a tile; a simdgroup has two groups of steps of them
constant constexpr int TILE = 64;             // steps of a tile
constant constexpr int THREADS = TILE / STEPS * LANES;
constant constexpr int PITCH = 18;            // numbers from step to step of a tile: the two halves of a simdgroup meet different banks

// what there is besides u and the filter of the past; bits of `options`
constant constexpr uint GATE_BEFORE = 1, GATE_AFTER = 2, SKIP = 4, BIAS = 8, SILU = 16, FLIPPED = 32, CHANNELS_LAST = 64;

struct Strides {
  size_t batch, channel, along;
};

// Of arrays that are made here.
inline Strides own_strides(uint options, size_t channels, size_t length) {
  if (options & CHANNELS_LAST) return Strides{length * channels, 1, channels};
  return Strides{channels * length, length, 1};
}

struct Window {
  int past, future;  // steps that it reaches back and ahead
  int size() const thread { return past + future + 1; }
};

inline Window window_of(int taps, int ahead) { return Window{max(taps, 1) - 1, max(ahead, 1) - 1}; }

// The numbers of a tile that a thread loads or stores, along the contiguous axis: channels c, c + channels, ... and of
// each the steps t, t + steps, ...
struct Walk {
  int c, channels, t, steps;
};

inline Walk walk(const thread Strides& strides, int me) {
  if (strides.along == 1) return Walk{me / 32, THREADS / 32, me % 32, 32};
  return Walk{me % LANES, LANES, me / LANES, THREADS / LANES};
}

// tile[row] = u v of the step `first` + row, 0 outside of the sequence, for `rows` rows
template <typename U, typename V>
inline void load(threadgroup float* tile, U u, const thread Strides& us, V v, const thread Strides& vs, bool gated, int first,
                 int rows, int length, uint channel, uint channels, uint b, int me) {
  const Walk w = walk(us, me);
  for (int c = w.c; c < LANES; c += w.channels) {
    const bool exists = channel + c < channels;
    const U own_u = u + b * us.batch + (channel + c) * us.channel;
    const V own_v = v + b * vs.batch + (channel + c) * vs.channel;
    for (int row = w.t; row < rows; row += w.steps) {
      const int t = first + row;
      const bool there = exists && t >= 0 && t < length;
      float x = there ? float(own_u[t * us.along]) : 0.0f;
      if (gated && there) x *= float(own_v[t * vs.along]);
      tile[row * PITCH + c] = x;
    }
  }
}

// weights[i] of each channel, i = 0 the oldest step of the window
template <typename Taps, typename Ahead, typename Skip>
inline void load_window(threadgroup float* weights, Taps taps, int past, Ahead ahead, int future, Skip skip, uint options,
                            uint channel, uint channels, int me) {
  const Window window = window_of(past, future);
  for (int at = me; at < window.size() * LANES; at += THREADS) {
    const int lag = window.past - at / LANES;
    const uint c = channel + at % LANES;
    const bool flipped = options & FLIPPED;
    float w = 0.0f;
    if (c < channels) {
      if (lag >= 0 && lag < past) w = float(taps[size_t(c) * past + (flipped ? past - 1 - lag : lag)]);
      if (lag <= 0 && -lag < future) w += float(ahead[size_t(c) * future + (flipped ? future - 1 + lag : -lag)]);
      if (lag == 0 && options & SKIP) w += float(skip[c]);
    }
    weights[at] = w;
  }
}

// out[k] = sum over i < size of weights[i step] tile[first + k + i]; the tile has so many rows
inline void convolve(thread float (&out)[STEPS], const threadgroup float* tile, int first, int rows,
                     const threadgroup float* weights, int step, int size) {
  float slide[STEPS];
#pragma clang loop unroll(full)
  for (int k = 0; k < STEPS; k++) {
    out[k] = 0.0f;
    slide[k] = tile[min(first + k, rows - 1) * PITCH];
  }
  for (int from = 0; from < size; from += STEPS)
#pragma clang loop unroll(full)
    for (int i = 0; i < STEPS; i++)
      if (from + i < size) {
        const float w = weights[(from + i) * step];
#pragma clang loop unroll(full)
        for (int k = 0; k < STEPS; k++) out[k] = fma(w, slide[(i + k) % STEPS], out[k]);
        slide[i] = tile[min(first + from + i + STEPS, rows - 1) * PITCH];
      }
}

inline float sigmoid(float z) { return 1.0f / (1.0f + precise::exp(-z)); }

// A threadgroup has one tile. shared: weights, then TILE + window - 1 rows.
template <typename U, typename V, typename Q, typename Taps, typename Ahead, typename Skip, typename Bias, typename T>
inline void forward(U u, V v, Q q, Taps taps, Ahead ahead, Skip skip, Bias bias, device T* y, uint channels, int length, int past,
                    int future, uint options, Strides us, Strides vs, Strides qs, threadgroup float* shared, uint group, int me) {
  const Window window = window_of(past, future);
  const int size = window.size(), rows = TILE + size - 1;
  const uint groups = (channels + LANES - 1) / LANES, tiles = (length + TILE - 1) / TILE;
  const uint channel = group % groups * LANES, b = group / groups / tiles;
  const int start = group / groups % tiles * TILE, lane = me % LANES, first = me / LANES * STEPS;
  threadgroup float* tile = shared + size * LANES;
  load_window(shared, taps, past, ahead, future, skip, options, channel, channels, me);
  load(tile, u, us, v, vs, options & GATE_BEFORE, start - window.past, rows, length, channel, channels, b, me);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  float out[STEPS];
  convolve(out, tile + lane, first, rows, shared + lane, LANES, size);
  const float more = options & BIAS && channel + lane < channels ? float(bias[channel + lane]) : 0.0f;
  threadgroup_barrier(mem_flags::mem_threadgroup);
#pragma clang loop unroll(full)
  for (int k = 0; k < STEPS; k++) {
    const float z = out[k] + more;
    tile[(first + k) * PITCH + lane] = options & SILU ? z * sigmoid(z) : z;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const Strides ys = own_strides(options, channels, length);
  const Walk w = walk(ys, me);
  for (int c = w.c; c < LANES && channel + c < channels; c += w.channels)
    for (int row = w.t; row < TILE && start + row < length; row += w.steps) {
      const size_t t = start + row, at = b * ys.batch + (channel + c) * ys.channel + t * ys.along;
      float z = tile[row * PITCH + c];
      if (options & GATE_AFTER) z *= float(q[b * qs.batch + (channel + c) * qs.channel + t * qs.along]);
      y[at] = T(z);
    }
}

// Gradients in u, v and q, and of each channel the sums over a part of all tiles that make those of its window and its bias:
// partial (parts, channels, window + 1). shared: weights, then TILE + 2 (window - 1) rows of u v, TILE + window - 1 of dz.
// Where nothing but a product follows the sums, dz is g; else they are computed again for all steps whose dz the tile needs.
template <typename G, typename U, typename V, typename Q, typename Taps, typename Ahead, typename Skip, typename Bias, typename T>
inline void backward(G g, U u, V v, Q q, Taps taps, Ahead ahead, Skip skip, Bias bias, device T* du, device T* dv, device T* dq,
                     device float* partial, uint batch, uint channels, int length, int past, int future, uint parts, uint options,
                     Strides gs, Strides us, Strides vs, Strides qs, threadgroup float* shared, uint group, int me) {
  const Window window = window_of(past, future);
  const int size = window.size(), x_rows = TILE + 2 * (size - 1), rows = TILE + size - 1;
  const uint groups = (channels + LANES - 1) / LANES, tiles = (length + TILE - 1) / TILE;
  const uint channel = group % groups * LANES, part = group / groups;
  const int lane = me % LANES, segment = me / LANES, first = segment * STEPS;
  const Strides ys = own_strides(options, channels, length);
  threadgroup float *x = shared + size * LANES, *dz = x + x_rows * PITCH;
  const float more = options & BIAS && channel + lane < channels ? float(bias[channel + lane]) : 0.0f;
  load_window(shared, taps, past, ahead, future, skip, options, channel, channels, me);

  // of the sums over time a thread has 8 neighbouring taps, and 8 steps for each group of taps that there is
  int tap_groups = 1;
  while (tap_groups * STEPS < size) tap_groups *= 2;
  const int tap = segment % tap_groups * STEPS, from = segment / tap_groups * tap_groups * STEPS;
  float sums[STEPS] = {}, bias_sum = 0.0f;

  for (uint turn = part; turn < tiles * batch; turn += parts) {
    const uint b = turn / tiles;
    const int start = turn % tiles * TILE;
    load(x, u, us, v, vs, options & GATE_BEFORE, start - window.past - window.future, x_rows, length, channel, channels, b, me);
    load(dz, g, gs, q, qs, options & GATE_AFTER, start - window.future, rows, length, channel, channels, b, me);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    float after[STEPS] = {};
    if (options & (SILU | GATE_AFTER)) {
      // the tile's own steps, then those before and after it, 8 at a time
      const int before = (window.future + STEPS - 1) / STEPS, behind = (window.past + STEPS - 1) / STEPS;
      for (int octet = segment; octet < TILE / STEPS + before + behind; octet += TILE / STEPS) {
        const int other = octet - TILE / STEPS, own = window.future + octet * STEPS;
        const int row = other < 0 ? own : other < before ? other * STEPS : window.future + TILE + (other - before) * STEPS;
        const int end = other < 0 ? own + STEPS : other < before ? window.future : rows;
        float out[STEPS];
        convolve(out, x + lane, row, x_rows, shared + lane, LANES, size);
#pragma clang loop unroll(full)
        for (int k = 0; k < STEPS; k++) {
          const float z = out[k] + more, s = options & SILU ? sigmoid(z) : 1.0f;
          if (other < 0) after[k] = z * s;
          const int t = start - window.future + row + k;
          if (options & SILU && row + k < end) {
            threadgroup float& own_dz = dz[(row + k) * PITCH + lane];
            own_dz = t >= 0 && t < length ? own_dz * (s * (1.0f + z * (1.0f - s))) : 0.0f;
          }
        }
      }
      threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    float dx[STEPS];
    convolve(dx, dz + lane, first, rows, shared + (size - 1) * LANES + lane, -LANES, size);
    if (tap < size) {
      float slide[STEPS];
#pragma clang loop unroll(full)
      for (int i = 0; i < STEPS; i++) slide[i] = x[min(from + window.future + tap + i, x_rows - 1) * PITCH + lane];
      for (int row = from; row < from + tap_groups * STEPS; row += STEPS)
#pragma clang loop unroll(full)
        for (int k = 0; k < STEPS; k++) {
          const float own = dz[(window.future + row + k) * PITCH + lane];
          bias_sum += own;
#pragma clang loop unroll(full)
          for (int i = 0; i < STEPS; i++) sums[i] = fma(own, slide[(k + i) % STEPS], sums[i]);
          slide[k] = x[min(row + k + window.future + tap + STEPS, x_rows - 1) * PITCH + lane];
        }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
#pragma clang loop unroll(full)
    for (int k = 0; k < STEPS; k++) {
      x[(first + k) * PITCH + lane] = dx[k];
      dz[(first + k) * PITCH + lane] = after[k];
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    const Walk w = walk(ys, me);
    for (int c = w.c; c < LANES && channel + c < channels; c += w.channels)
      for (int row = w.t; row < TILE && start + row < length; row += w.steps) {
        const size_t t = start + row, at = b * ys.batch + (channel + c) * ys.channel + t * ys.along;
        const float d = x[row * PITCH + c];
        if (options & GATE_BEFORE) {
          du[at] = T(d * float(v[b * vs.batch + (channel + c) * vs.channel + t * vs.along]));
          dv[at] = T(d * float(u[b * us.batch + (channel + c) * us.channel + t * us.along]));
        } else {
          du[at] = T(d);
        }
        if (options & GATE_AFTER)
          dq[at] = T(dz[row * PITCH + c] * float(g[b * gs.batch + (channel + c) * gs.channel + t * gs.along]));
      }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  // Each group of taps is added up over its threads, in the tile's memory; the bias is one tap more, the first group's.
#pragma clang loop unroll(full)
  for (int i = 0; i < STEPS; i++) x[(first + i) * PITCH + lane] = sums[i];
  dz[segment * PITCH + lane] = bias_sum;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (int at = me; at < (size + 1) * LANES; at += THREADS) {
    const int i = at / LANES, c = at % LANES;
    float sum = 0.0f;
    for (int s = i < size ? i / STEPS : 0; s < TILE / STEPS; s += tap_groups)
      sum += i < size ? x[(s * STEPS + i % STEPS) * PITCH + c] : dz[s * PITCH + c];
    if (channel + c < channels) partial[(size_t(part) * channels + channel + c) * (size + 1) + i] = sum;
  }
}

// The gradients of the filters, the skip and the bias from the sums of `backward`, added up in order: one thread for each tap.
template <typename Partial>
inline void backward_taps(Partial partial, device float* d_taps, device float* d_ahead, device float* d_skip, device float* d_bias,
                          uint channels, int past, int future, uint parts, uint options, uint group, uint me) {
  const Window window = window_of(past, future);
  const uint at = group * THREADS + me, each = window.size() + 1, c = at / each;
  if (c >= channels) return;
  float sum = 0.0f;
  for (uint part = 0; part < parts; part++) sum += partial[size_t(part) * channels * each + at];
  const int lag = window.past - int(at % each);
  const bool flipped = options & FLIPPED, is_bias = at % each == each - 1;
  if (!is_bias && lag >= 0 && lag < past) d_taps[size_t(c) * past + (flipped ? past - 1 - lag : lag)] = sum;
  if (!is_bias && lag <= 0 && -lag < future) d_ahead[size_t(c) * future + (flipped ? future - 1 + lag : -lag)] = sum;
  if (!is_bias && lag == 0 && options & SKIP) d_skip[c] = sum;
  if (is_bias && options & BIAS) d_bias[c] = sum;
}

}  // namespace shortconv
