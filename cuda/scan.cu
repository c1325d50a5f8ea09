// The elementwise linear recurrence h_t = a_t h_{t-1} + b_t, and its gradients; Mamba's selective scan.
//
// Twin of metal/scan.metal: the same names, the same algorithm. A block owns LANES neighbouring channels of one
// sequence and walks it tile by tile; in a tile each thread has STEPS steps of one channel, its segment, in registers.
// What a segment does to the state that enters it is one product and one sum: h -> product h + sum. These meet in
// shared memory, then every thread knows the state that enters its segment, and walks it again. So each array is
// read or written once, and the state is float32 throughout.
//
// Every function works for one thread, which `position` names: x is the channel, y the segment within a tile, z the
// sequence. Channels and steps that do not exist leave the state as it is (decay 1, input 0); nothing is read or
// written for them. Only the STEPS decays of a segment are ever multiplied: that product overflows where decays are
// above 2^16, and underflows where nothing is left of the state.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace scan {

constexpr unsigned LANES = 32;     // channels of a block; neighbours in memory are read together
constexpr unsigned SEGMENTS = 16;  // of a tile, at most: 512 threads, so that few blocks already keep the memory busy
constexpr unsigned STEPS = 8;      // of a segment; three arrays of them fit in registers

// (product, sum) of each segment, for two tiles in turn: a thread that is ahead fills the other one, so that one
// barrier a tile is enough.
struct Totals {
  float2 of[2][SEGMENTS][LANES];
};

// grid.y and grid.z end at 65,535 blocks, sequences do not: blockIdx.x counts the channels' blocks of all sequences.
__device__ inline uint3 position(unsigned width) {
  const unsigned blocks = (width + LANES - 1) / LANES;
  return uint3{blockIdx.x % blocks * LANES + threadIdx.x, threadIdx.y, blockIdx.x / blocks};
}

// Segments of a tile, as many as the block has: a short sequence does not need all.
__device__ inline unsigned segments_for(unsigned length) { return min(SEGMENTS, (length + STEPS - 1) / STEPS); }

// Where a thread's numbers lie: its channel of a (batch, length, width) array begins at `start`, its sequence of (batch, length)
// at `steps`, and what belongs to its channel of (batch, width, count) at `row`.
struct Place {
  unsigned channel, lane;
  bool exists;
  size_t row, start, steps;
};

__device__ inline Place place_of(unsigned length, unsigned width, unsigned count, uint3 position) {
  const size_t sequence = position.z;
  return Place{position.x, position.x % LANES, position.x < width, (sequence * width + position.x) * count,
               sequence * length * width + position.x, sequence * length};
}

// The state that enters this thread's segment. `carry` is the state that enters the tile, then the one that leaves it.
__device__ inline float enter(float2 mine, float& carry, Totals& totals, unsigned tile, unsigned segments,
                              uint3 position) {
  const unsigned turn = tile & 1, lane = position.x % LANES;
  totals.of[turn][position.y][lane] = mine;
  __syncthreads();
  float entering = carry;
  for (unsigned s = 0; s < segments; s++) {
    if (s == position.y) entering = carry;
    const float2 total = totals.of[turn][s][lane];
    carry = total.x * carry + total.y;
  }
  return entering;
}

// h[t] = a[t] h[t - 1] + b[t], h[-1] = initial; h_final = h[length - 1], not rounded to T
template <typename T>
__device__ void linear_forward(const T* a, const T* b, const float* initial, T* h, float* h_final, unsigned length,
                               unsigned width, Totals& totals, uint3 position) {
  const Place here = place_of(length, width, 1, position);
  const unsigned segments = segments_for(length);
  float carry = here.exists ? initial[here.row] : 0.0f;
  for (unsigned tile = 0; tile * segments * STEPS < length; tile++) {
    const unsigned first = (tile * segments + position.y) * STEPS;
    float decay[STEPS], input[STEPS];
#pragma unroll
    for (unsigned k = 0; k < STEPS; k++) {
      const bool there = here.exists && first + k < length;
      const size_t at = here.start + size_t(first + k) * width;
      decay[k] = there ? float(a[at]) : 1.0f;
      input[k] = there ? float(b[at]) : 0.0f;
    }
    float product = 1.0f, state = 0.0f;
#pragma unroll
    for (unsigned k = 0; k < STEPS; k++) {
      product *= decay[k];
      state = decay[k] * state + input[k];
    }
    state = enter(float2{product, state}, carry, totals, tile, segments, position);
#pragma unroll
    for (unsigned k = 0; k < STEPS; k++) {
      const unsigned t = first + k;
      state = decay[k] * state + input[k];
      if (here.exists && t < length) h[here.start + size_t(t) * width] = T(state);
      if (here.exists && t + 1 == length) h_final[here.row] = state;
    }
  }
}

// Backwards in time, with back[t] = a[t] lam[t] as the state, back[length] = g_final:
//   lam[t] = g[t] + back[t + 1],  d_b[t] = lam[t],  d_a[t] = lam[t] h[t - 1],  d_initial = back[0]
// Steps are counted from the end: the walk is that of linear_forward, and so is the meeting of the segments.
template <typename T>
__device__ void linear_backward(const T* g, const float* g_final, const T* a, const T* h, const float* initial, T* d_a,
                                T* d_b, float* d_initial, unsigned length, unsigned width, Totals& totals,
                                uint3 position) {
  const Place here = place_of(length, width, 1, position);
  const unsigned segments = segments_for(length);
  float carry = here.exists ? g_final[here.row] : 0.0f;
  for (unsigned tile = 0; tile * segments * STEPS < length; tile++) {
    const unsigned first = (tile * segments + position.y) * STEPS;
    float decay[STEPS], grad[STEPS], before[STEPS];
#pragma unroll
    for (unsigned k = 0; k < STEPS; k++) {
      const bool there = here.exists && first + k < length, oldest = first + k + 1 == length;
      const size_t at = here.start + size_t(length - 1 - (first + k)) * width;
      decay[k] = there ? float(a[at]) : 1.0f;
      grad[k] = there ? float(g[at]) : 0.0f;
      before[k] = !there ? 0.0f : oldest ? float(initial[here.row]) : float(h[at - width]);
    }
    float product = 1.0f, back = 0.0f;
#pragma unroll
    for (unsigned k = 0; k < STEPS; k++) {
      product *= decay[k];
      back = decay[k] * (grad[k] + back);
    }
    back = enter(float2{product, back}, carry, totals, tile, segments, position);
#pragma unroll
    for (unsigned k = 0; k < STEPS; k++) {
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

constexpr unsigned STATES = 64;  // of a channel in the selective scan, at most

// The states that enter a tile, and what its segments do to one of them.
struct States {
  Totals totals;
  float of[STATES][LANES];
};

// of = the states that enter a sequence; all threads may read them then.
__device__ inline void begin(const float* initial, float (&of)[STATES][LANES], const Place& here, unsigned count, uint3 position) {
  if (position.y == 0)
    for (unsigned n = 0; n < count; n++) of[n][here.lane] = here.exists ? initial[here.row + n] : 0.0f;
  __syncthreads();
}

// Mamba's selective scan, forward: h[t, n] = exp(dt[t] A[n]) h[t - 1, n] + dt[t] x[t] B[t, n] for each channel, and
//   y[t] = sum over n of C[t, n] h[t, n] + D x[t]
// State after state of a tile is walked as in linear_forward; what enters a tile is kept in shared memory, written
// after the barrier that all come to when they have read it. There are at least two states, so that a barrier lies
// between a state's writing and its reading in the next tile.
template <typename T>
__device__ void selective_forward(const T* x, const float* dt, const float* A, const float* B, const float* C,
                                  const float* D, const float* initial, T* y, float* last, unsigned length,
                                  unsigned width, unsigned count, States& states, uint3 position) {
  const Place here = place_of(length, width, count, position);
  const unsigned segments = segments_for(length);
  begin(initial, states.of, here, count, position);
  for (unsigned tile = 0; tile * segments * STEPS < length; tile++) {
    const unsigned first = (tile * segments + position.y) * STEPS;
    float step[STEPS], input[STEPS], out[STEPS];
#pragma unroll
    for (unsigned k = 0; k < STEPS; k++) {
      const bool there = here.exists && first + k < length;
      const size_t at = here.start + size_t(first + k) * width;
      const float value = there ? float(x[at]) : 0.0f;
      step[k] = there ? dt[at] : 0.0f;
      input[k] = step[k] * value;
      out[k] = there ? D[here.channel] * value : 0.0f;
    }
    for (unsigned n = 0; n < count; n++) {
      const float rate = here.exists ? A[size_t(here.channel) * count + n] : 0.0f;
      float decay[STEPS], product = 1.0f, state = 0.0f, given[STEPS];
#pragma unroll
      for (unsigned k = 0; k < STEPS; k++) {
        decay[k] = expf(step[k] * rate);
        given[k] = first + k < length ? input[k] * B[(here.steps + first + k) * count + n] : 0.0f;
        product *= decay[k];
        state = decay[k] * state + given[k];
      }
      float carry = states.of[n][here.lane];
      state = enter(float2{product, state}, carry, states.totals, tile * count + n, segments, position);
      if (position.y == 0) states.of[n][here.lane] = carry;
#pragma unroll
      for (unsigned k = 0; k < STEPS; k++) {
        state = decay[k] * state + given[k];
        if (first + k < length) out[k] += C[(here.steps + first + k) * count + n] * state;
        if (here.exists && first + k + 1 == length) last[here.row + n] = state;
      }
    }
#pragma unroll
    for (unsigned k = 0; k < STEPS; k++)
      if (here.exists && first + k < length) y[here.start + size_t(first + k) * width] = T(out[k]);
  }
}

}  // namespace scan

#include "scan_selective_grad.cu"

template <typename T>
__global__ void scan_linear_forward(const T* a, const T* b, const float* initial, T* h, float* h_final,
                                    unsigned length, unsigned width) {
  __shared__ scan::Totals totals;
  scan::linear_forward(a, b, initial, h, h_final, length, width, totals, scan::position(width));
}

template <typename T>
__global__ void scan_linear_backward(const T* g, const float* g_final, const T* a, const T* h, const float* initial,
                                     T* d_a, T* d_b, float* d_initial, unsigned length, unsigned width) {
  __shared__ scan::Totals totals;
  scan::linear_backward(g, g_final, a, h, initial, d_a, d_b, d_initial, length, width, totals, scan::position(width));
}

template <typename T>
__global__ void scan_selective_forward(const T* x, const float* dt, const float* A, const float* B, const float* C,
                                       const float* D, const float* initial, T* y, float* last, unsigned length,
                                       unsigned width, unsigned count) {
  __shared__ scan::States states;
  scan::selective_forward(x, dt, A, B, C, D, initial, y, last, length, width, count, states, scan::position(width));
}
