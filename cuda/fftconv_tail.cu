// What a convolution of up to TAILS numbers more than 2 M has no room for.
//
// Twin of metal/fftconv_tail.metal.
namespace fftconv {

constexpr int ROWS_OF_TAIL = 32;  // of a block, TAILS threads each

// What the thread number `place` of the row has; 0 where the row has none.
__device__ inline float of_row(float x, int place) {
  const float given = __shfl_sync(0xffffffffu, x, place & (TAILS - 1), TAILS);
  return unsigned(place) < unsigned(TAILS) ? given : 0.0f;
}

// Modulo X^M - i, what would be at 2 M + n comes back to n with the other sign, for n < left = L + K - 1 - 2 M. Lengths of
// 2^j + 2 have three of these, and need no longer transform: they are as few products of the first places, the last numbers
// and the last taps. `points` is 2 M, x'[n] = x[L - 1 - n], k'[n] = k[2 M - L + 1 + n].
//   tails[b, h, n] = sum of x'[p] k'[n + p] belongs to z[n]
//   ends[b, h, n] = sum of dz[p] k'[n + p] to dx[L - 1 - n]
//   tap_ends[h, left - 1 - n] = sum over the batch of dz[p] x'[n - p] to the gradient of k'[n]
// The last two only where there is a gradient g; the first z, which a gelu's slope needs, is its first taps and numbers.
template <class P, bool BACK, typename T>
__device__ inline void tail(const T* g, const T* u, const T* v, const T* q, const float* k, const float* D, const float* mask,
                            float* tails, float* ends, float* tap_ends, float* shared, unsigned batch, unsigned heads,
                            int length, int taps, int points, Strides gs, Strides us, Strides vs, Strides qs) {
  const int n = threadIdx.x % TAILS, left = length + taps - 1 - points;
  const unsigned slot = threadIdx.x / TAILS, head = blockIdx.x;
  const float* filter = k + size_t(head) * taps;
  const float last_tap = n < left ? filter[points - length + 1 + n] : 0.0f;
  const float first_tap = BACK && P::CURVED && n < taps ? filter[n] : 0.0f;
  float sum = 0.0f;
  for (unsigned start = 0; start < batch; start += ROWS_OF_TAIL) {
    const bool live = start + slot < batch;
    const unsigned b = min(start + slot, batch - 1), row = (b * heads + head) * TAILS + n;
    const T *own_u = u + us.of(b, head), *own_v = v + vs.of(b, head);
    float last = n < left ? float(own_u[length - 1 - n]) : 0.0f;
    if (P::GATED && n < left) last *= float(own_v[length - 1 - n]);
    float more = 0.0f;
    for (int p = 0; p < TAILS; p++) more = fmaf(of_row(last, p), of_row(last_tap, n + p), more);
    if (live) tails[row] = more;
    if constexpr (BACK) {
      float dz = n < left ? float(g[gs.of(b, head) + n]) : 0.0f;
      if (P::MASKED) dz *= mask[b * heads + head];
      if (P::GATED_AFTER && n < left) dz *= float(q[qs.of(b, head) + n]);
      if constexpr (P::CURVED) {
        float x = n < length ? float(own_u[n]) : 0.0f;
        if (P::GATED && n < length) x *= float(own_v[n]);
        float z = P::SKIPS ? D[head] * x : 0.0f;
        for (int p = 0; p < TAILS; p++) z = fmaf(of_row(x, p), of_row(first_tap, n - p), z);
        dz *= gelu_slope(z);
      }
      float end = 0.0f, term = 0.0f;
      for (int p = 0; p < TAILS; p++) {
        end = fmaf(of_row(dz, p), of_row(last_tap, n + p), end);
        term = fmaf(of_row(dz, p), of_row(last, n - p), term);
      }
      if (live) ends[row] = end, sum += term;
    }
  }
  if constexpr (BACK) {
    shared[threadIdx.x] = sum;
    __syncthreads();
    if (slot > 0) return;
    float total = 0.0f;
    for (int i = 0; i < ROWS_OF_TAIL; i++) total += n < left ? shared[i * TAILS + left - 1 - n] : 0.0f;
    tap_ends[size_t(head) * TAILS + n] = total;
  }
}

}  // namespace fftconv
