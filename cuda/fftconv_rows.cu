// What is around the transforms of the long convolution: rows are loaded, gated, multiplied by spectra, and stored.
//
// Twin of metal/fftconv_rows.metal.
namespace fftconv {

// What tells where a row is and where it ends. A compiler that has these numbers in registers computes the row's addresses and conditions
// at its start, and holds them all through the transforms. Where registers are too few for that the numbers wait in shared
// memory, in two places that `padded` leaves free.
struct Row {
  unsigned head, b, other;
  int length;

  template <class P>
  __device__ void put(float* shared, int me) const {
    if (!P::TIGHT || me > 0) return;
    ((uint2*)shared)[padded(16) - 1] = uint2{head, b};
    ((uint2*)shared)[padded(32) - 1] = uint2{other, unsigned(length)};
  }

  // What was put there before the last exchange.
  template <class P>
  __device__ void get(const float* shared) {
    if (!P::TIGHT) return;
    const uint2 low = ((const uint2*)shared)[padded(16) - 1], high = ((const uint2*)shared)[padded(32) - 1];
    head = low.x, b = low.y, other = high.x, length = high.y;
  }
};

// Whether a row has a number `step` after the one at `row`, of which `left` remain.
template <class P>
__device__ inline bool has(int step, int left) { return !P::CUT || step < left; }

// A row of numbers, from position `first` on; zeros beyond its end.
template <class P, typename T>
__device__ inline void load_row(float2* z, const T* row, int left) {
#pragma unroll
  for (int i = 0; i < P::POINTS; i++) {
    const int n = step<P, 0>(i);
    z[i].x = has<P>(n, left) ? float(row[n]) : 0.0f;
    z[i].y = P::FOLDED && has<P>(n + P::M, left) ? float(row[n + P::M]) : 0.0f;
  }
}

template <class P, typename T>
__device__ inline void gate_row(float2* z, const T* row, int left) {
#pragma unroll
  for (int i = 0; i < P::POINTS; i++) {
    const int n = step<P, 0>(i);
    if (has<P>(n, left)) z[i].x *= float(row[n]);
    if (P::FOLDED && has<P>(n + P::M, left)) z[i].y *= float(row[n + P::M]);
  }
}

__device__ inline float gelu(float z) { return 0.5f * z * (1.0f + erff(z * 0.70710678118654752f)); }

__device__ inline float gelu_slope(float z) {
  return fmaf(z * 0.3989422804014327f, expf(-0.5f * z * z), 0.5f * (1.0f + erff(z * 0.70710678118654752f)));
}

// Number of register i at position first + step (side 0) or M later (side 1).
template <class P>
__device__ inline float result(float2 z, int i, int side) { return side ? imaginary_part<P>(z, i) : real_part<P>(z, i); }

// Value i of thread t of a spectrum is at i THREADS + t: neighbours read neighbours. `skip` is D / M.
template <class P>
__device__ inline void multiply(float2* z, const float2* spectrum, float skip, bool conjugate) {
#pragma unroll
  for (int i = 0; i < P::POINTS; i++) {
    const float2 f = spectrum[i * P::THREADS];
    z[i] = product(z[i], float2{P::SKIPS ? f.x + skip : f.x, conjugate ? -f.y : f.y});
  }
}

// sums += conj(x) z, some at a time.
template <class P, int SOME>
__device__ inline void add_terms(float2* sums, const float2* x, const float2* z, bool first) {
#pragma unroll
  for (int i = 0; i < P::POINTS; i += SOME) {
    float2 own[SOME], sum[SOME];
#pragma unroll
    for (int j = 0; j < SOME && i + j < P::POINTS; j++) {
      own[j] = x[(i + j) * P::THREADS];
      sum[j] = first ? float2{0.0f, 0.0f} : sums[(i + j) * P::THREADS];
    }
#pragma unroll
    for (int j = 0; j < SOME && i + j < P::POINTS; j++) {
      const float2 term = product(float2{own[j].x, -own[j].y}, z[i + j]);
      sums[(i + j) * P::THREADS] = float2{sum[j].x + term.x, sum[j].y + term.y};
    }
  }
}

// Strides of a (batch, channels, length) array whose rows are contiguous.
struct Strides {
  size_t batch, channel;
  __device__ size_t of(unsigned b, unsigned c) const { return b * batch + c * channel; }
};

// With several channels in a head, every pair of them, `one` and `other`, is a row: u and q are those of one channel, v, y and
// its gradient those of the other. What belongs to a channel is the sum over its pairs, added up in order.
template <bool PAIRED>
struct Pair {
  unsigned width, one, other;
  __device__ explicit Pair(unsigned head_dim, unsigned number) : width(PAIRED ? head_dim : 1), one(0), other(0) {
    if (PAIRED) one = number % (width * width) / width, other = number % width;
  }
};

// Sums are made in float32.
template <typename T, bool PAIRED>
struct Written { using Type = T; };
template <typename T>
struct Written<T, true> { using Type = float; };

// Puts the filter of the future before the filter: lag -n is lag 2 M - n with the other sign.
template <class P>
__device__ inline void mirror(float2* z, const float* row, int first, int taps) {
#pragma unroll
  for (int i = 0; i < P::POINTS; i++) {
    const int n = first + step<P, 0>(i);
    if (n == 0) z[i].x += row[0];
    else if (2 * P::M - n < taps) z[i].x -= row[2 * P::M - n];
    if (P::M - n < taps) z[i].y -= row[P::M - n];
  }
}

// Numbers of a row for registers from `i` on, from position `side` M; zeros if they are not wanted.
template <class P, typename T>
__device__ inline void load_ahead(float* ahead, const T* row, int i, int side, int left, bool wanted) {
#pragma unroll
  for (int j = 0; j < P::AHEAD && i + j < P::POINTS; j++) {
    const int n = step<P, 0>(i + j) + side * P::M;
    ahead[j] = wanted && has<P>(n, left) ? float(row[n]) : 0.0f;
  }
}

// What would be at 2 M + n has come back to n with the other sign. It is added again (from `tail`, see there), to the real part
// that `real_part` will find.
template <class P>
__device__ inline void mend(float2* z, const float* tails, int first) {
#pragma unroll
  for (int i = 0; i < P::POINTS; i++) {
    const int n = step<P, 0>(i);
    if (n >= TAILS || first + n >= TAILS) continue;
    const float2 c = unit((i & ((1 << P::bits(0)) - 1)) << (6 - P::bits(0)));
    const float more = tails[first + n];
    z[i] = float2{fmaf(more, c.x, z[i].x), fmaf(more, c.y, z[i].y)};
  }
}

// The end of the forward: y of the convolution's values. `more`: of a sum that has been begun.
template <class P, typename T, typename Y>
__device__ inline void store_output(const float2* z, const T* q, float factor, Y* y, int left, bool more) {
#pragma unroll
  for (int side = 0; side < P::HALVES; side++) {
#pragma unroll
    for (int i = 0; i < P::POINTS; i += P::AHEAD) {
      float gate[P::AHEAD], sum[P::AHEAD];
      load_ahead<P>(gate, q, i, side, left, P::GATED_AFTER);
      load_ahead<P>(sum, y, i, side, left, P::PAIRED && more);
#pragma unroll
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
template <class P, typename T, typename Y>
__device__ inline void turn_back(float2* z, const T* g, const T* q, float factor, Y* dq, int left, bool more, bool live) {
#pragma unroll
  for (int i = 0; i < P::POINTS; i++) z[i] = float2{result<P>(z[i], i, 0), P::FOLDED ? result<P>(z[i], i, 1) : 0.0f};
#pragma unroll
  for (int side = 0; side < P::HALVES; side++) {
#pragma unroll
    for (int i = 0; i < P::POINTS; i += P::AHEAD) {
      float dz[P::AHEAD], gate[P::AHEAD], sum[P::AHEAD];
      load_ahead<P>(dz, g, i, side, left, true);
      load_ahead<P>(gate, q, i, side, left, P::GATED_AFTER);
      load_ahead<P>(sum, dq, i, side, left, P::PAIRED && more && live);
#pragma unroll
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
template <class P, typename T>
__device__ inline void load_gradient(float2* z, const T* g, float factor, int left) {
  load_row<P>(z, g, left);
  if constexpr (P::MASKED) {
#pragma unroll
    for (int i = 0; i < P::POINTS; i++) z[i] = float2{z[i].x * factor, z[i].y * factor};
  }
}

// du and dv. `ends`: see `tail`.
template <class P, typename T, typename Y>
__device__ inline void store_gradient(const float2* z, const T* u, const T* v, const float* ends, Y* du, Y* dv, int left,
                                      bool more_du, bool more_dv) {
#pragma unroll
  for (int side = 0; side < P::HALVES; side++) {
#pragma unroll
    for (int i = 0; i < P::POINTS; i += P::AHEAD) {
      float first[P::AHEAD], gate[P::AHEAD], sum_du[P::AHEAD], sum_dv[P::AHEAD];
      load_ahead<P>(first, u, i, side, left, P::GATED);
      load_ahead<P>(gate, v, i, side, left, P::GATED);
      load_ahead<P>(sum_du, du, i, side, left, P::PAIRED && more_du);
      load_ahead<P>(sum_dv, dv, i, side, left, P::PAIRED && more_dv);
#pragma unroll
      for (int j = 0; j < P::AHEAD && i + j < P::POINTS; j++) {
        const int n = step<P, 0>(i + j) + side * P::M;
        float dx = result<P>(z[i + j], i + j, side);
        if (!has<P>(n, left)) continue;
        if (P::TAILED && left - n <= TAILS) dx += ends[left - n - 1];
        if (P::PAIRED) {
          du[n] = Y(fmaf(dx, gate[j], sum_du[j]));
          dv[n] = Y(fmaf(dx, first[j], sum_dv[j]));
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
__device__ inline void store_filter_gradient(const float2* z, const float* ends, float* dk, float* dk_reverse, int first,
                                             int taps, int taps_reverse) {
#pragma unroll
  for (int i = 0; i < P::POINTS; i++) {
#pragma unroll
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
