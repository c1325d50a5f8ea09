// What is around the transforms of the long convolution: rows are loaded, gated, multiplied by spectra, and stored.
//
// Twin of cuda/fftconv_rows.cu.
namespace fftconv {

// Whether a row has a number `step` after the one at `row`, of which `left` remain.
template <class P>
inline bool has(int step, int left) { return !P::CUT || step < left; }

// A row of numbers, from position `first` on; zeros beyond its end.
template <class P, typename Row>
inline void load_row(thread float2* z, Row row, size_t along, int left) {
#pragma clang loop unroll(full)
  for (int i = 0; i < P::POINTS; i++) {
    const int n = step<P, 0>(i);
    z[i].x = has<P>(n, left) ? float(row[n * along]) : 0.0f;
    z[i].y = P::FOLDED && has<P>(n + P::M, left) ? float(row[(n + P::M) * along]) : 0.0f;
  }
}

template <class P, typename Row>
inline void gate_row(thread float2* z, Row row, size_t along, int left) {
#pragma clang loop unroll(full)
  for (int i = 0; i < P::POINTS; i++) {
    const int n = step<P, 0>(i);
    if (has<P>(n, left)) z[i].x *= float(row[n * along]);
    if (P::FOLDED && has<P>(n + P::M, left)) z[i].y *= float(row[(n + P::M) * along]);
  }
}

// Metal has no erf: least-squares polynomials, to 2e-7.
inline float error_function(float x) {
  const float a = abs(x), s = x * x, t = 1.0f / fma(0.5f, a, 1.0f);
  if (a < 1.0f) {
    const float p = fma(fma(fma(fma(fma(fma(fma(-9.68974078e-06f, s, 0.000112747378f), s, -0.000848543891f), s,
                    0.0052211387f), s, -0.0268654755f), s, 0.112837834f), s, -0.376126386f), s, 1.12837917f);
    return p * x;
  }
  const float p = fma(fma(fma(fma(fma(fma(fma(0.118973789f, t, -0.469894118f), t, 0.561322316f), t, -0.102000999f), t,
                  0.347003364f), t, 0.259925606f), t, 0.284873234f), t, -0.000151410033f);
  return copysign(1.0f - p * precise::exp(-s), x);
}

inline float gelu(float z) { return 0.5f * z * (1.0f + error_function(z * 0.70710678118654752f)); }

inline float gelu_slope(float z) {
  return fma(z * 0.3989422804014327f, precise::exp(-0.5f * z * z), 0.5f * (1.0f + error_function(z * 0.70710678118654752f)));
}

// Number of register i at position first + step (side 0) or M later (side 1).
template <class P>
inline float result(float2 z, int i, int side) { return side ? imaginary_part<P>(z, i) : real_part<P>(z, i); }

// Value i of thread t of a spectrum is at i THREADS + t: neighbours read neighbours. `skip` is D / M.
template <class P>
inline void multiply(thread float2* z, const device float2* spectrum, float skip, bool conjugate) {
#pragma clang loop unroll(full)
  for (int i = 0; i < P::POINTS; i++) {
    const float2 f = spectrum[i * P::THREADS];
    z[i] = product(z[i], float2(P::SKIPS ? f.x + skip : f.x, conjugate ? -f.y : f.y));
  }
}

// sums += conj(x) z, some at a time.
template <class P, int SOME>
inline void add_terms(device float2* sums, const device float2* x, thread const float2* z, bool first) {
#pragma clang loop unroll(full)
  for (int i = 0; i < P::POINTS; i += SOME) {
    float2 own[SOME], sum[SOME];
#pragma clang loop unroll(full)
    for (int j = 0; j < SOME && i + j < P::POINTS; j++) {
      own[j] = x[(i + j) * P::THREADS];
      sum[j] = first ? float2(0.0f, 0.0f) : sums[(i + j) * P::THREADS];
    }
#pragma clang loop unroll(full)
    for (int j = 0; j < SOME && i + j < P::POINTS; j++) {
      const float2 term = product(float2(own[j].x, -own[j].y), z[i + j]);
      sums[(i + j) * P::THREADS] = float2(sum[j].x + term.x, sum[j].y + term.y);
    }
  }
}

// Strides of a (batch, channels, length) array.
struct Strides {
  size_t batch, channel, along;
  size_t of(uint b, uint c) const thread { return b * batch + c * channel; }
};

// With several channels in a head, every pair of them, `one` and `other`, is a row: u and q are those of one channel, v, y and
// its gradient those of the other. What belongs to a channel is the sum over its pairs, added up in order, in float32.
template <bool PAIRED>
struct Pair {
  uint width, one, other;
  explicit Pair(uint head_dim, uint number) : width(PAIRED ? head_dim : 1), one(0), other(0) {
    if (PAIRED) one = number % (width * width) / width, other = number % width;
  }
};

// Puts the filter of the future before the filter: lag -n is lag 2 M - n with the other sign.
template <class P, typename Row>
inline void mirror(thread float2* z, Row row, int first, int taps) {
#pragma clang loop unroll(full)
  for (int i = 0; i < P::POINTS; i++) {
    const int n = first + step<P, 0>(i);
    if (n == 0) z[i].x += row[0];
    else if (2 * P::M - n < taps) z[i].x -= row[2 * P::M - n];
    if (P::M - n < taps) z[i].y -= row[P::M - n];
  }
}

// Numbers of a row for registers from `i` on, from position `side` M; zeros if they are not wanted.
template <class P, typename Row>
inline void load_ahead(thread float* ahead, Row row, size_t along, int i, int side, int left, bool wanted) {
#pragma clang loop unroll(full)
  for (int j = 0; j < P::AHEAD && i + j < P::POINTS; j++) {
    const int n = step<P, 0>(i + j) + side * P::M;
    ahead[j] = wanted && has<P>(n, left) ? float(row[n * along]) : 0.0f;
  }
}

// What would be at 2 M + n has come back to n with the other sign. It is added again (from `tail`, see there), to the real part
// that `real_part` will find.
template <class P>
inline void mend(thread float2* z, const device float* tails, int first) {
#pragma clang loop unroll(full)
  for (int i = 0; i < P::POINTS; i++) {
    const int n = step<P, 0>(i);
    if (n >= TAILS || first + n >= TAILS) continue;
    const float2 c = unit((i & ((1 << P::bits(0)) - 1)) << (6 - P::bits(0)));
    const float more = tails[first + n];
    z[i] = float2(fma(more, c.x, z[i].x), fma(more, c.y, z[i].y));
  }
}

// The end of the forward: y of the convolution's values. `more`: of a sum that has been begun.
template <class P, typename Gate, typename Y>
inline void store_output(thread const float2* z, Gate q, size_t along, float factor, device Y* y, int left, bool more) {
#pragma clang loop unroll(full)
  for (int side = 0; side < P::HALVES; side++) {
#pragma clang loop unroll(full)
    for (int i = 0; i < P::POINTS; i += P::AHEAD) {
      float gate[P::AHEAD], sum[P::AHEAD];
      load_ahead<P>(gate, q, along, i, side, left, P::GATED_AFTER);
      load_ahead<P>(sum, y, 1, i, side, left, P::PAIRED && more);
#pragma clang loop unroll(full)
      for (int j = 0; j < P::AHEAD && i + j < P::POINTS; j++) {
        const int n = step<P, 0>(i + j) + side * P::M;
        float a = result<P>(z[i + j], i + j, side);
        if (P::CURVED) a = gelu(a);
        if (P::MASKED) a *= factor;
        if (P::GATED_AFTER) a *= gate[j];
        if (has<P>(n, left)) y[n] = Y(P::PAIRED ? a + sum[j] : a);
      }
    }
  }
}

// dq, and in place of the convolution's values their gradient.
template <class P, typename G, typename Gate, typename Y>
inline void turn_back(thread float2* z, G g, size_t g_along, Gate q, size_t q_along, float factor, device Y* dq, int left,
                      bool more, bool live) {
#pragma clang loop unroll(full)
  for (int i = 0; i < P::POINTS; i++) z[i] = float2(result<P>(z[i], i, 0), P::FOLDED ? result<P>(z[i], i, 1) : 0.0f);
#pragma clang loop unroll(full)
  for (int side = 0; side < P::HALVES; side++) {
#pragma clang loop unroll(full)
    for (int i = 0; i < P::POINTS; i += P::AHEAD) {
      float dz[P::AHEAD], gate[P::AHEAD], sum[P::AHEAD];
      load_ahead<P>(dz, g, g_along, i, side, left, true);
      load_ahead<P>(gate, q, q_along, i, side, left, P::GATED_AFTER);
      load_ahead<P>(sum, dq, 1, i, side, left, P::PAIRED && more && live);
#pragma clang loop unroll(full)
      for (int j = 0; j < P::AHEAD && i + j < P::POINTS; j++) {
        const int n = step<P, 0>(i + j) + side * P::M;
        const float a = side ? z[i + j].y : z[i + j].x;
        if (P::MASKED) dz[j] *= factor;
        const float d = dz[j] * (P::CURVED ? gelu(a) : a);
        if (P::GATED_AFTER && live && has<P>(n, left)) dq[n] = Y(P::PAIRED ? d + sum[j] : d);
        if (P::GATED_AFTER) dz[j] *= gate[j];
        if (P::CURVED) dz[j] *= gelu_slope(a);
        if (side) z[i + j].y = dz[j];
        else z[i + j].x = dz[j];
      }
    }
  }
}

// The same where nothing but a mask follows the convolution.
template <class P, typename G>
inline void load_gradient(thread float2* z, G g, size_t along, float factor, int left) {
  load_row<P>(z, g, along, left);
  if constexpr (P::MASKED) {
#pragma clang loop unroll(full)
    for (int i = 0; i < P::POINTS; i++) z[i] = float2(z[i].x * factor, z[i].y * factor);
  }
}

// du and dv. `ends`: see `tail`.
template <class P, typename U, typename V, typename Y>
inline void store_gradient(thread const float2* z, U u, size_t u_along, V v, size_t v_along, const device float* ends, device Y* du,
                           device Y* dv, int left, bool more_du, bool more_dv) {
#pragma clang loop unroll(full)
  for (int side = 0; side < P::HALVES; side++) {
#pragma clang loop unroll(full)
    for (int i = 0; i < P::POINTS; i += P::AHEAD) {
      float first[P::AHEAD], gate[P::AHEAD], sum_du[P::AHEAD], sum_dv[P::AHEAD];
      load_ahead<P>(first, u, u_along, i, side, left, P::GATED);
      load_ahead<P>(gate, v, v_along, i, side, left, P::GATED);
      load_ahead<P>(sum_du, du, 1, i, side, left, P::PAIRED && more_du);
      load_ahead<P>(sum_dv, dv, 1, i, side, left, P::PAIRED && more_dv);
#pragma clang loop unroll(full)
      for (int j = 0; j < P::AHEAD && i + j < P::POINTS; j++) {
        const int n = step<P, 0>(i + j) + side * P::M;
        float dx = result<P>(z[i + j], i + j, side);
        if (!has<P>(n, left)) continue;
        if (P::TAILED && left - n <= TAILS) dx += ends[left - n - 1];
        if (P::PAIRED) {
          du[n] = Y(fma(dx, gate[j], sum_du[j]));
          dv[n] = Y(fma(dx, first[j], sum_dv[j]));
          continue;
        }
        du[n] = Y(P::GATED ? dx * gate[j] : dx);
        if (P::GATED) dv[n] = Y(dx * first[j]);
      }
    }
  }
}

// dk and dk_reverse. `ends`: see `tail`.
template <class P>
inline void store_filter_gradient(thread const float2* z, const device float* ends, device float* dk, device float* dk_reverse,
                                  int first, int taps, int taps_reverse) {
#pragma clang loop unroll(full)
  for (int i = 0; i < P::POINTS; i++) {
#pragma clang loop unroll(full)
    for (int side = 0; side < 2; side++) {
      const int n = first + step<P, 0>(i) + side * P::M;
      const float d = result<P>(z[i], i, side);
      if (n < taps) dk[n] = P::TAILED && taps - n <= TAILS ? d + ends[taps - n - 1] : d;
      if (!P::MIRRORED) continue;
      if (n == 0) dk_reverse[0] = d;
      else if (2 * P::M - n < taps_reverse) dk_reverse[2 * P::M - n] = -d;
    }
  }
}

}  // namespace fftconv
