// The elementwise linear recurrence h_t = a_t h_{t-1} + b_t, and its gradients; Mamba's selective scan.
//
// Twin of cuda/scan.cu: the same names, the same algorithm. A threadgroup owns LANES neighbouring channels of one
// sequence and walks it tile by tile; in a tile each thread has STEPS steps of one channel, its segment, in registers.
// What a segment does to the state that enters it is one product and one sum: h -> product h + sum. These meet in
// threadgroup memory, then every thread knows the state that enters its segment, and walks it again. So each array is
// read or written once, and the state is float32 throughout.
//
// Every function works for one thread, which `position` names: x is the channel, y the segment within a tile, z the
// sequence. Channels and steps that do not exist leave the state as it is (decay 1, input 0); nothing is read or
// written for them. Only the STEPS decays of a segment are ever multiplied: that product overflows where decays are
// above 2^16, and underflows where nothing is left of the state.
#include <metal_stdlib>
using namespace metal;

namespace scan {

constant constexpr uint LANES = 32;    // channels of a threadgroup; neighbours in memory are read together
constant constexpr uint SEGMENTS = 8;  // of a tile, at most: 256 threads, which registers allow on every Apple GPU
constant constexpr uint STEPS = 8;     // of a segment; three arrays of them fit in registers

// (product, sum) of each segment, for two tiles in turn: a thread that is ahead fills the other one, so that one
// barrier a tile is enough.
struct Totals {
  float2 of[2][SEGMENTS][LANES];
};

// Segments of a tile, as many as the threadgroup has: a short sequence does not need all.
inline uint segments_for(uint length) { return min(SEGMENTS, (length + STEPS - 1) / STEPS); }

// Where a thread's numbers lie: its channel of a (batch, length, width) array begins at `start`, its sequence of (batch, length)
// at `steps`, and what belongs to its channel of (batch, width, count) at `row`.
struct Place {
  uint channel, lane;
  bool exists;
  size_t row, start, steps;
};

inline Place place_of(uint length, uint width, uint count, uint3 position) {
  const size_t sequence = position.z;
  return Place{position.x, position.x % LANES, position.x < width, (sequence * width + position.x) * count,
               sequence * length * width + position.x, sequence * length};
}

// The state that enters this thread's segment. `carry` is the state that enters the tile, then the one that leaves it.
inline float enter(float2 mine, thread float& carry, threadgroup Totals& totals, uint tile, uint segments,
                   uint3 position) {
  const uint turn = tile & 1, lane = position.x % LANES;
  totals.of[turn][position.y][lane] = mine;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  float entering = carry;
  for (uint s = 0; s < segments; s++) {
    if (s == position.y) entering = carry;
    const float2 total = totals.of[turn][s][lane];
    carry = total.x * carry + total.y;
  }
  return entering;
}

// h[t] = a[t] h[t - 1] + b[t], h[-1] = initial; h_final = h[length - 1], not rounded to T
template <typename Series, typename State, typename T>
void linear_forward(Series a, Series b, State initial, device T* h, device float* h_final, uint length, uint width,
                    threadgroup Totals& totals, uint3 position) {
  const Place here = place_of(length, width, 1, position);
  const uint segments = segments_for(length);
  float carry = here.exists ? initial[here.row] : 0.0f;
  for (uint tile = 0; tile * segments * STEPS < length; tile++) {
    const uint first = (tile * segments + position.y) * STEPS;
    float decay[STEPS], input[STEPS];
#pragma clang loop unroll(full)
    for (uint k = 0; k < STEPS; k++) {
      const bool there = here.exists && first + k < length;
      const size_t at = here.start + size_t(first + k) * width;
      decay[k] = there ? float(a[at]) : 1.0f;
      input[k] = there ? float(b[at]) : 0.0f;
    }
    float product = 1.0f, state = 0.0f;
#pragma clang loop unroll(full)
    for (uint k = 0; k < STEPS; k++) {
      product *= decay[k];
      state = decay[k] * state + input[k];
    }
    state = enter(float2(product, state), carry, totals, tile, segments, position);
#pragma clang loop unroll(full)
    for (uint k = 0; k < STEPS; k++) {
      const uint t = first + k;
      state = decay[k] * state + input[k];
      if (here.exists && t < length) h[here.start + size_t(t) * width] = T(state);
      if (here.exists && t + 1 == length) h_final[here.row] = state;
    }
  }
}

// Backwards in time, with back[t] = a[t] lam[t] as the state, back[length] = g_final:
//   lam[t] = g[t] + back[t + 1],  d_b[t] = lam[t],  d_a[t] = lam[t] h[t - 1],  d_initial = back[0]
// Steps are counted from the end: the walk is that of linear_forward, and so is the meeting of the segments.
template <typename Series, typename State, typename T>
void linear_backward(Series g, State g_final, Series a, Series h, State initial, device T* d_a, device T* d_b,
                     device float* d_initial, uint length, uint width, threadgroup Totals& totals, uint3 position) {
  const Place here = place_of(length, width, 1, position);
  const uint segments = segments_for(length);
  float carry = here.exists ? g_final[here.row] : 0.0f;
  for (uint tile = 0; tile * segments * STEPS < length; tile++) {
    const uint first = (tile * segments + position.y) * STEPS;
    float decay[STEPS], grad[STEPS], before[STEPS];
#pragma clang loop unroll(full)
    for (uint k = 0; k < STEPS; k++) {
      const bool there = here.exists && first + k < length, oldest = first + k + 1 == length;
      const size_t at = here.start + size_t(length - 1 - (first + k)) * width;
      decay[k] = there ? float(a[at]) : 1.0f;
      grad[k] = there ? float(g[at]) : 0.0f;
      before[k] = !there ? 0.0f : oldest ? float(initial[here.row]) : float(h[at - width]);
    }
    float product = 1.0f, back = 0.0f;
#pragma clang loop unroll(full)
    for (uint k = 0; k < STEPS; k++) {
      product *= decay[k];
      back = decay[k] * (grad[k] + back);
    }
    back = enter(float2(product, back), carry, totals, tile, segments, position);
#pragma clang loop unroll(full)
    for (uint k = 0; k < STEPS; k++) {
      const bool there = here.exists && first + k < length, oldest = first + k + 1 == length;
      const size_t at = here.start + size_t(length - 1 - (first + k)) * width;
      const float lam = grad[k] + back;
      back = decay[k] * lam;
      if (there) {
        d_a[at] = T(lam * before[k]);
        d_b[at] = T(lam);
      }
      if (there && oldest) d_initial[here.row] = back;
    }
  }
}

constant constexpr uint STATES = 64;  // of a channel in the selective scan, at most

// The states that enter a tile, and what its segments do to one of them.
struct States {
  Totals totals;
  float of[STATES][LANES];
};

// of = the states that enter a sequence; all threads may read them then.
template <typename State>
inline void begin(State initial, threadgroup float (&of)[STATES][LANES], thread const Place& here, uint count, uint3 position) {
  if (position.y == 0)
    for (uint n = 0; n < count; n++) of[n][here.lane] = here.exists ? initial[here.row + n] : 0.0f;
  threadgroup_barrier(mem_flags::mem_threadgroup);
}

// Mamba's selective scan, forward: h[t, n] = exp(dt[t] A[n]) h[t - 1, n] + dt[t] x[t] B[t, n] for each channel, and
//   y[t] = sum over n of C[t, n] h[t, n] + D x[t]
// State after state of a tile is walked as in linear_forward; what enters a tile is kept in threadgroup memory, written
// after the barrier that all come to when they have read it. There are at least two states, so that a barrier lies
// between a state's writing and its reading in the next tile.
template <typename Series, typename Steps, typename Decay, typename In, typename Out, typename Skip, typename State,
          typename T>
void selective_forward(Series x, Steps dt, Decay A, In B, Out C, Skip D, State initial, device T* y, device float* last,
                       uint length, uint width, uint count, threadgroup States& states, uint3 position) {
  const Place here = place_of(length, width, count, position);
  const uint segments = segments_for(length);
  begin(initial, states.of, here, count, position);
  for (uint tile = 0; tile * segments * STEPS < length; tile++) {
    const uint first = (tile * segments + position.y) * STEPS;
    float step[STEPS], input[STEPS], out[STEPS];
#pragma clang loop unroll(full)
    for (uint k = 0; k < STEPS; k++) {
      const bool there = here.exists && first + k < length;
      const size_t at = here.start + size_t(first + k) * width;
      const float value = there ? float(x[at]) : 0.0f;
      step[k] = there ? dt[at] : 0.0f;
      input[k] = step[k] * value;
      out[k] = there ? D[here.channel] * value : 0.0f;
    }
    for (uint n = 0; n < count; n++) {
      const float rate = here.exists ? A[size_t(here.channel) * count + n] : 0.0f;
      float decay[STEPS], product = 1.0f, state = 0.0f, given[STEPS];
#pragma clang loop unroll(full)
      for (uint k = 0; k < STEPS; k++) {
        decay[k] = precise::exp(step[k] * rate);
        given[k] = first + k < length ? input[k] * B[(here.steps + first + k) * count + n] : 0.0f;
        product *= decay[k];
        state = decay[k] * state + given[k];
      }
      float carry = states.of[n][here.lane];
      state = enter(float2(product, state), carry, states.totals, tile * count + n, segments, position);
      if (position.y == 0) states.of[n][here.lane] = carry;
#pragma clang loop unroll(full)
      for (uint k = 0; k < STEPS; k++) {
        state = decay[k] * state + given[k];
        if (first + k < length) out[k] += C[(here.steps + first + k) * count + n] * state;
        if (here.exists && first + k + 1 == length) last[here.row + n] = state;
      }
    }
#pragma clang loop unroll(full)
    for (uint k = 0; k < STEPS; k++)
      if (here.exists && first + k < length) y[here.start + size_t(first + k) * width] = T(out[k]);
  }
}

}  // namespace scan

#include "scan_selective_grad.metal"
