// The gradients of Mamba's selective scan, for the cotangents g of y and g_last of the last state:
//   lam[t, n] = C[t, n] g[t] + back[t + 1, n],  back[t, n] = exp(dt[t] A[n]) lam[t, n],  back[length] = g_last,  d_initial = back[0]
//   d_x[t] = D g[t] + dt[t] sum over n of lam B[t, n],    d_D = sum over t of g[t] x[t]
//   d_dt[t] = sum over n of lam (A[n] e h[t - 1, n] + x[t] B[t, n]),  e = exp(dt[t] A[n]),    d_A[n] = sum over t of lam dt[t] e h[t - 1, n]
//   d_B[t, n] = sum over channels of lam dt[t] x[t],    d_C[t, n] = sum over channels of g[t] h[t, n]
//
// Twin of cuda/scan_selective_grad.cu: the same names, the same algorithm. The states are not kept: `selective_states` walks on and
// writes those that enter each tile, `selective_backward` walks back from tile to tile, and in each, state after state, both ways at
// once: what a segment does to the state that enters it and to what comes back is known before the one barrier of the two. Sums over the
// channels of a threadgroup are made by its simdgroups, sums over these and over the batch afterwards: no atomics, so the same bits.
namespace scan {

constant constexpr uint BACK_SEGMENTS = 8;  // of a tile, at most, on the way back, where a thread needs more registers

inline uint back_segments_for(uint length) { return min(BACK_SEGMENTS, (length + STEPS - 1) / STEPS); }

// entering[b, tile, n, channel] = the state that enters the tile
template <typename Series, typename Steps, typename Decay, typename In, typename State>
void selective_states(Series x, Steps dt, Decay A, In B, State initial, device float* entering, uint length, uint width,
                      uint count, threadgroup States& states, uint3 position) {
  const Place here = place_of(length, width, count, position);
  const uint segments = back_segments_for(length), tiles = (length + segments * STEPS - 1) / (segments * STEPS);
  begin(initial, states.of, here, count, position);
  for (uint tile = 0; tile < tiles; tile++) {
    const uint first = (tile * segments + position.y) * STEPS;
    float step[STEPS], input[STEPS];
#pragma clang loop unroll(full)
    for (uint k = 0; k < STEPS; k++) {
      const bool there = here.exists && first + k < length;
      const size_t at = here.start + size_t(first + k) * width;
      step[k] = there ? dt[at] : 0.0f;
      input[k] = there ? step[k] * float(x[at]) : 0.0f;
    }
    for (uint n = 0; n < count; n++) {
      const float rate = here.exists ? A[size_t(here.channel) * count + n] : 0.0f;
      float product = 1.0f, state = 0.0f;
#pragma clang loop unroll(full)
      for (uint k = 0; k < STEPS; k++) {
        const float decay = precise::exp(step[k] * rate);
        product *= decay;
        state = decay * state + (first + k < length ? input[k] * B[(here.steps + first + k) * count + n] : 0.0f);
      }
      float carry = states.of[n][here.lane];
      if (position.y == 0 && here.exists)
        entering[((size_t(position.z) * tiles + tile) * count + n) * width + here.channel] = carry;
      enter(float2(product, state), carry, states.totals, tile * count + n, segments, position);
      if (position.y == 0) states.of[n][here.lane] = carry;
    }
  }
}

// What the segments of a tile tell each other of a state: the product of their decays, the state that they add, what they send back,
// and their part of the gradient of the rate before. What comes back from later tiles, and the rates' gradients so far.
struct BackStates {
  float4 of[2][BACK_SEGMENTS][LANES];
  float back[STATES][LANES];
  float rates[STATES][LANES];
};

// The sum over the simdgroup of the number lane / 4 of v: of eight, in nine exchanges.
inline float sum_of_lanes(thread float (&v)[STEPS], uint lane) {
#pragma clang loop unroll(full)
  for (uint span = STEPS / 2; span; span /= 2) {
    const bool upper = lane & (4 * span);
#pragma clang loop unroll(full)
    for (uint i = 0; i < span; i++) {
      const float given = upper ? v[i] : v[i + span], kept = upper ? v[i + span] : v[i];
      v[i] = kept + simd_shuffle_xor(given, ushort(4 * span));
    }
  }
  const float sum = v[0] + simd_shuffle_xor(v[0], ushort(2));
  return sum + simd_shuffle_xor(sum, ushort(1));
}

// d_A (batch, count, width), d_B and d_C (batch, groups of channels, count, length) and d_D (batch, width) are parts of sums.
// There are at least two states, as in selective_forward.
template <typename Up, typename Last, typename Series, typename Steps, typename Decay, typename In, typename Out, typename Skip,
          typename Entering, typename T>
void selective_backward(Up g, Last g_last, Series x, Steps dt, Decay A, In B, Out C, Skip D, Entering entering,
                        device T* d_x, device float* d_dt, device float* d_A, device float* d_B, device float* d_C,
                        device float* d_D, device float* d_initial, uint length, uint width, uint count,
                        threadgroup BackStates& states, uint3 position) {
  const Place here = place_of(length, width, count, position);
  const uint segments = back_segments_for(length), tiles = (length + segments * STEPS - 1) / (segments * STEPS);
  const uint groups = (width + LANES - 1) / LANES;
  const bool leads = position.y == 0;
  if (leads)
    for (uint n = 0; n < count; n++) states.rates[n][here.lane] = 0.0f;
  begin(g_last, states.back, here, count, position);
  const float skip = here.exists ? D[here.channel] : 0.0f;
  float d_skip = 0.0f, d_rate = 0.0f;
  uint turn = 0;
  for (uint tile = tiles; tile-- > 0;) {
    const uint first = (tile * segments + position.y) * STEPS;
    float step[STEPS], value[STEPS], up[STEPS], d_input[STEPS], d_step[STEPS];
#pragma clang loop unroll(full)
    for (uint k = 0; k < STEPS; k++) {
      const bool there = here.exists && first + k < length;
      const size_t at = here.start + size_t(first + k) * width;
      step[k] = there ? dt[at] : 0.0f;
      value[k] = there ? float(x[at]) : 0.0f;
      up[k] = there ? float(g[at]) : 0.0f;
      d_input[k] = d_step[k] = 0.0f;
      d_skip += up[k] * value[k];
    }
    for (uint n = 0; n < count; n++, turn ^= 1) {
      const float rate = here.exists ? A[size_t(here.channel) * count + n] : 0.0f;
      float decay[STEPS], in[STEPS], out[STEPS], product = 1.0f, state = 0.0f, back = 0.0f;
      size_t at = (here.steps + first) * count + n;
#pragma clang loop unroll(full)
      for (uint k = 0; k < STEPS; k++) {
        const bool there = first + k < length;
        decay[k] = precise::exp(step[k] * rate);
        in[k] = there ? B[at] : 0.0f;
        out[k] = there ? C[at] : 0.0f;
        at += count;
        product *= decay[k];
        state = decay[k] * state + step[k] * value[k] * in[k];
      }
#pragma clang loop unroll(full)
      for (uint k = STEPS; k-- > 0;) back = decay[k] * (out[k] * up[k] + back);
      states.of[turn][position.y][here.lane] = float4(product, state, back, d_rate);
      float carry_back = states.back[n][here.lane];
      threadgroup_barrier(mem_flags::mem_threadgroup);
      float carry = here.exists ? entering[((size_t(position.z) * tiles + tile) * count + n) * width + here.channel] : 0.0f;
      float rates = 0.0f;
#pragma clang loop unroll(disable)
      for (uint s = 0; s < segments; s++) {
        if (s == position.y) state = carry;
        const float4 total = states.of[turn][s][here.lane];
        carry = total.x * carry + total.y;
        rates += total.w;
      }
#pragma clang loop unroll(disable)
      for (uint s = segments; s-- > 0;) {
        if (s == position.y) back = carry_back;
        const float4 total = states.of[turn][s][here.lane];
        carry_back = total.x * carry_back + total.z;
      }
      if (leads) {
        states.back[n][here.lane] = carry_back;
        states.rates[n ? n - 1 : count - 1][here.lane] += rates;
        if (tile == 0 && here.exists) d_initial[here.row + n] = carry_back;
      }
      float before[STEPS], met[STEPS];
#pragma clang loop unroll(full)
      for (uint k = 0; k < STEPS; k++) {
        before[k] = decay[k] * state;
        state = before[k] + step[k] * value[k] * in[k];
        met[k] = up[k] * state;
      }
      const float met_out = sum_of_lanes(met, here.lane);
      d_rate = 0.0f;
#pragma clang loop unroll(full)
      for (uint k = STEPS; k-- > 0;) {
        const float lam = out[k] * up[k] + back;
        met[k] = lam * step[k] * value[k];
        d_input[k] += lam * in[k];
        d_step[k] += lam * before[k] * rate;
        d_rate += lam * before[k] * step[k];
        back = decay[k] * lam;
      }
      const float met_in = sum_of_lanes(met, here.lane);
      const uint t = first + here.lane / 4;
      if (here.lane % 4 == 0 && t < length) {
        const size_t at = ((size_t(position.z) * groups + here.channel / LANES) * count + n) * length + t;
        d_B[at] = met_in;
        d_C[at] = met_out;
      }
    }
#pragma clang loop unroll(full)
    for (uint k = 0; k < STEPS; k++)
      if (here.exists && first + k < length) {
        d_x[here.start + size_t(first + k) * width] = T(skip * up[k] + step[k] * d_input[k]);
        d_dt[here.start + size_t(first + k) * width] = d_step[k] + value[k] * d_input[k];
      }
  }
  states.of[turn][position.y][here.lane] = float4(0.0f, 0.0f, d_skip, d_rate);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (!leads || !here.exists) return;
  d_skip = 0.0f;
  for (uint s = 0; s < segments; s++) {
    d_skip += states.of[turn][s][here.lane].z;
    states.rates[count - 1][here.lane] += states.of[turn][s][here.lane].w;
  }
  d_D[size_t(position.z) * width + here.channel] = d_skip;
  for (uint n = 0; n < count; n++) d_A[(size_t(position.z) * count + n) * width + here.channel] = states.rates[n][here.lane];
}

}  // namespace scan
