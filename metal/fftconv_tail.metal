// What a convolution of up to TAILS numbers more than 2 M has no room for.
//
// Twin of cuda/fftconv_tail.cu.
namespace fftconv {

constant constexpr int ROWS_OF_TAIL = 32;  // of a threadgroup, TAILS threads each

// What the thread number `place` of the row has; 0 where the row has none.
inline float of_row(float x, int place, uint lane) {
  const float given = simd_shuffle(x, ushort(lane % LANES / TAILS * TAILS + (place & (TAILS - 1))));
  return uint(place) < uint(TAILS) ? given : 0.0f;
}

// Modulo X^M - i, what would be at 2 M + n comes back to n with the other sign, for n < left = L + K - 1 - 2 M. Lengths of
// 2^j + 2 have three of these, and need no longer transform: they are as few products of the first places, the last numbers
// and the last taps. `points` is 2 M, x'[n] = x[L - 1 - n], k'[n] = k[2 M - L + 1 + n].
//   tails[b, h, n] = sum of x'[p] k'[n + p] belongs to z[n]
//   ends[b, h, n] = sum of dz[p] k'[n + p] to dx[L - 1 - n]
//   tap_ends[h, left - 1 - n] = sum over the batch of dz[p] x'[n - p] to the gradient of k'[n]
// The last two only where there is a gradient g; the first z, which a gelu's slope needs, is its first taps and numbers.
template <class P, bool BACK, typename G, typename U, typename V, typename Q, typename Filter, typename Skip, typename Mask>
inline void tail(G g, U u, V v, Q q, Filter k, Skip D, Mask mask, device float* tails, device float* ends, device float* tap_ends,
                 uint batch, uint heads, int length, int taps, int points, Strides gs, Strides us, Strides vs, Strides qs,
                 threadgroup float* shared, uint head, uint lane) {
  const int n = lane % TAILS, left = length + taps - 1 - points;
  const uint slot = lane / TAILS;
  const Filter filter = k + size_t(head) * taps;
  const float last_tap = n < left ? filter[points - length + 1 + n] : 0.0f;
  const float first_tap = BACK && P::CURVED && n < taps ? filter[n] : 0.0f;
  float sum = 0.0f;
  for (uint start = 0; start < batch; start += ROWS_OF_TAIL) {
    const bool live = start + slot < batch;
    const uint b = min(start + slot, batch - 1), row = (b * heads + head) * TAILS + n;
    float last = n < left ? float(u[us.of(b, head) + (length - 1 - n) * us.along]) : 0.0f;
    if constexpr (P::GATED)
      if (n < left) last *= float(v[vs.of(b, head) + (length - 1 - n) * vs.along]);
    float more = 0.0f;
    for (int p = 0; p < TAILS; p++) more = fma(of_row(last, p, lane), of_row(last_tap, n + p, lane), more);
    if (live) tails[row] = more;
    if constexpr (BACK) {
      float dz = n < left ? float(g[gs.of(b, head) + n * gs.along]) : 0.0f;
      if constexpr (P::MASKED) dz *= mask[b * heads + head];
      if constexpr (P::GATED_AFTER)
        if (n < left) dz *= float(q[qs.of(b, head) + n * qs.along]);
      if constexpr (P::CURVED) {
        float x = n < length ? float(u[us.of(b, head) + n * us.along]) : 0.0f;
        if constexpr (P::GATED)
          if (n < length) x *= float(v[vs.of(b, head) + n * vs.along]);
        float z = P::SKIPS ? D[head] * x : 0.0f;
        for (int p = 0; p < TAILS; p++) z = fma(of_row(x, p, lane), of_row(first_tap, n - p, lane), z);
        dz *= gelu_slope(z);
      }
      float end = 0.0f, term = 0.0f;
      for (int p = 0; p < TAILS; p++) {
        end = fma(of_row(dz, p, lane), of_row(last_tap, n + p, lane), end);
        term = fma(of_row(dz, p, lane), of_row(last, n - p, lane), term);
      }
      if (live) ends[row] = end, sum += term;
    }
  }
  if constexpr (BACK) {
    shared[lane] = sum;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (slot > 0) return;
    float total = 0.0f;
    for (int i = 0; i < ROWS_OF_TAIL; i++) total += n < left ? shared[i * TAILS + left - 1 - n] : 0.0f;
    tap_ends[size_t(head) * TAILS + n] = total;
  }
}

}  // namespace fftconv
