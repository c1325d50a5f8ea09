// Long convolution by FFT: y = q * mask * gelu(k * (u v) + D (u v)), its gradients, and the filters' spectra.
//
// Twin of metal/fftconv.metal: the same names, the same algorithm.
//
// A real sequence x of up to 2 M numbers is the complex polynomial sum_n (x[n] + i x[n + M]) X^n, n < M. Products of
// such polynomials modulo X^M - i are real convolutions in which x[2 M] comes back as -x[0]: with 2 M >= L + K - 1
// nothing comes back, and M complex points do what a padded real transform needs 2 L real points for. Modulo X^M - i
// is done by halving: X^S - r^2 = (X^(S/2) - r) (X^(S/2) + r), down to S = 1. One step takes a, b (S/2 apart) to
// a + r b and a - r b, so r depends on the block alone, and the values at the roots come out in bit-reversed order,
// which nobody minds: the inverse starts from there, with position-dependent factors, and the twist exp(-i pi n / 2 M)
// is part of its last step.
//
// A row is worked on by P::THREADS threads, each with P::POINTS complex numbers in registers. A pass does some levels
// of the tree in registers; between passes the numbers are exchanged through shared memory, in place: a thread writes
// where it has read, so that one barrier an exchange is enough.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace fftconv {

constexpr unsigned LANES = 32;  // threads of a warp

// Numbers that a thread loads before it stores any: a load would wait behind a store that may be to its place.
constexpr int AHEAD = 16;

// What a call has: bits of OPTIONS. FOLD: rows are longer than M. RAGGED: they end before M (FOLD: before 2 M).
constexpr unsigned GATE_BEFORE = 1, GATE_AFTER = 2, SKIP = 4, MASK = 8, GELU = 16, REVERSE = 32, FOLD = 64, RAGGED = 128;

// cos(pi i / 128)
__device__ constexpr float COSINE[65] = {
    1.00000000000f, 0.99969881870f, 0.99879545621f, 0.99729045668f, 0.99518472667f, 0.99247953460f, 0.98917650996f,
    0.98527764239f, 0.98078528040f, 0.97570213004f, 0.97003125319f, 0.96377606580f, 0.95694033573f, 0.94952818059f,
    0.94154406518f, 0.93299279883f, 0.92387953251f, 0.91420975570f, 0.90398929312f, 0.89322430120f, 0.88192126435f,
    0.87008699111f, 0.85772861000f, 0.84485356525f, 0.83146961230f, 0.81758481315f, 0.80320753148f, 0.78834642763f,
    0.77301045336f, 0.75720884651f, 0.74095112535f, 0.72424708295f, 0.70710678119f, 0.68954054474f, 0.67155895485f,
    0.65317284295f, 0.63439328416f, 0.61523159058f, 0.59569930449f, 0.57580819142f, 0.55557023302f, 0.53499761989f,
    0.51410274419f, 0.49289819223f, 0.47139673683f, 0.44961132965f, 0.42755509343f, 0.40524131400f, 0.38268343237f,
    0.35989503653f, 0.33688985339f, 0.31368174040f, 0.29028467725f, 0.26671275747f, 0.24298017990f, 0.21910124016f,
    0.19509032202f, 0.17096188876f, 0.14673047446f, 0.12241067520f, 0.09801714033f, 0.07356456360f, 0.04906767433f,
    0.02454122852f, 0.0f};

template <unsigned OPTIONS>
struct Options {
  static constexpr bool GATED = OPTIONS & GATE_BEFORE, GATED_AFTER = OPTIONS & GATE_AFTER, SKIPS = OPTIONS & SKIP;
  static constexpr bool MASKED = OPTIONS & MASK, CURVED = OPTIONS & GELU, MIRRORED = OPTIONS & REVERSE;
  static constexpr bool FOLDED = OPTIONS & FOLD, CUT = OPTIONS & RAGGED;
  static constexpr int HALVES = FOLDED ? 2 : 1;
};

// How a transform of M = 2^LOG_M points is shared out. PASSES passes of nearly equal depth, the deeper ones first.
// OUTER: levels of a longer transform above it, see `Columns`.
template <int LOG_M_, int LOG_POINTS_, int ROWS_, bool SPLIT_, unsigned OPTIONS = 0, int OUTER_ = 0>
struct Plan : Options<OPTIONS> {
  static constexpr int LOG_M = LOG_M_, LOG_POINTS = LOG_POINTS_, ROWS = ROWS_, OUTER = OUTER_;  // ROWS: of a block
  static constexpr bool SPLIT = SPLIT_;  // exchange real and imaginary parts one after the other, in half the memory
  static constexpr int M = 1 << LOG_M, POINTS = 1 << LOG_POINTS, THREADS = M / POINTS;
  static constexpr int PASSES = (LOG_M + LOG_POINTS - 1) / LOG_POINTS;
  static constexpr int LANES_OF_ROW = THREADS < int(LANES) ? THREADS : int(LANES);
  static constexpr int SHARED = (M + M / 16) * (SPLIT ? 1 : 2);  // floats of a row

  __device__ static constexpr int bits(int pass) { return LOG_M / PASSES + (pass < LOG_M % PASSES); }
  // levels above a pass
  __device__ static constexpr int before(int pass) { return pass == 0 ? 0 : before(pass - 1) + bits(pass - 1); }
  // log2 of the distance of a pass's points
  __device__ static constexpr int distance(int pass) { return LOG_M - before(pass) - bits(pass); }
  // Factors in the table: a root for each block of a pass, but for the very first one; a power for each position of a
  // pass, pass 0 first; the twist of pass 0.
  __device__ static constexpr int roots(int pass) {
    return pass == 0 ? 0 : roots(pass - 1) + (OUTER || pass > 1 ? 1 << (OUTER + before(pass - 1)) : 0);
  }
  __device__ static constexpr int powers(int pass) {
    return pass == 0 ? roots(PASSES) : powers(pass - 1) + (1 << distance(pass - 1));
  }
  __device__ static constexpr int twist() { return powers(PASSES - 1); }
};

// The outermost levels of a transform that is too long for a block: 2^OUTER points, 2^LOG_INNER apart, in a thread.
template <int OUTER, int LOG_INNER, unsigned OPTIONS>
struct Columns : Options<OPTIONS> {
  static constexpr int INNER = 1 << LOG_INNER, POINTS = 1 << OUTER, M = POINTS << LOG_INNER, LANES_OF_ROW = 0;

  __device__ static constexpr int bits(int) { return OUTER; }
  __device__ static constexpr int distance(int) { return LOG_INNER; }
};

// Every 16 numbers one is left free, which spreads the strides of the passes over the banks.
__device__ constexpr int padded(int position) { return position + (position >> 4); }

// A pass has M / radix butterflies. The lanes of a warp have neighbouring ones, so that a warp's blocks are soon its
// own. The first of a thread's; the others follow at LANES_OF_ROW, which changes other bits of the number.
template <class P, int PASS>
__device__ inline int first_butterfly(int me) {
  constexpr int GROUPS = P::POINTS >> P::bits(PASS);
  return me / P::LANES_OF_ROW * (GROUPS * P::LANES_OF_ROW) + me % P::LANES_OF_ROW;
}

// Position of a butterfly's first point; the others follow at 1 << distance.
template <class P, int PASS>
__device__ constexpr int position(int butterfly) {
  constexpr int DISTANCE = P::distance(PASS);
  return ((butterfly >> DISTANCE) << (DISTANCE + P::bits(PASS))) + (butterfly & ((1 << DISTANCE) - 1));
}

// Position of register i, as a distance from register 0's.
template <class P, int PASS>
__device__ constexpr int step(int i) {
  constexpr int BITS = P::bits(PASS);
  return position<P, PASS>((i >> BITS) * P::LANES_OF_ROW) + ((i & ((1 << BITS) - 1)) << P::distance(PASS));
}

// Waits for the threads that have numbers of one block of the pass, at least.
template <class P, int PASS>
__device__ inline void meet() {
  if (P::THREADS <= int(LANES) || P::POINTS * int(LANES) >> (P::LOG_M - P::before(PASS))) __syncwarp();
  else __syncthreads();
}

__device__ inline float2 product(float2 a, float2 b) {
  return float2{fmaf(a.x, b.x, -a.y * b.y), fmaf(a.x, b.y, a.y * b.x)};
}

// exp(i pi angle / 128), 0 <= angle <= 64
__device__ inline float2 unit(int angle) { return float2{COSINE[angle], COSINE[64 - angle]}; }

// The lowest `bits` of k, at most 5, in the other order.
__device__ constexpr int reversed(int k, int bits) {
  return ((k & 1) << 4 | (k & 2) << 2 | (k & 4) | (k & 8) >> 2 | (k & 16) >> 4) >> (5 - bits);
}

// Factors of a pass: ROOT is the whole transform's first, whose block has the root i: all constants. FIRST is the
// inverse's first, with factors of position 0: constants too. Otherwise power[n] = r^(2^n) for the pass's own r.
enum Factors { ROOT, FIRST, GIVEN };

// One level of a pass: a, b -> a + t b, a - t b. REAL: imaginary parts are still zero.
template <Factors FACTORS, bool INVERSE, bool REAL, int BITS, int LEVEL>
__device__ inline void level(float2* z, const float2* power) {
  constexpr int APART = 1 << (INVERSE ? LEVEL : BITS - 1 - LEVEL);
#pragma unroll
  for (int pair = 0; pair < 1 << (BITS - 1); pair++) {
    const int block = pair / APART, offset = pair % APART, at = 2 * APART * block + offset;
    const int turn = INVERSE ? offset : reversed(block, LEVEL);  // t has the factor exp(+-i pi turn / 2^LEVEL)
    const bool quarter = LEVEL > 0 && turn >= (1 << LEVEL) / 2;
    const int rest = turn - (quarter ? (1 << LEVEL) / 2 : 0);
    const float2 a = z[at], b = z[at + APART];
    if (FACTORS == FIRST && rest == 0) {
      const float2 c = quarter ? (INVERSE ? float2{b.y, -b.x} : float2{-b.y, b.x}) : b;
      z[at] = float2{a.x + c.x, a.y + c.y};
      z[at + APART] = float2{a.x - c.x, a.y - c.y};
      continue;
    }
    float2 t;
    if (FACTORS == ROOT) {
      t = unit((1 + 4 * rest) << (5 - LEVEL));
    } else if (FACTORS == FIRST) {
      t = unit(rest << (7 - LEVEL));
      if (INVERSE) t.y = -t.y;
    } else {
      t = power[BITS - 1 - LEVEL];
      const float2 more = unit(rest << (7 - LEVEL));
      if (rest) t = product(t, float2{more.x, INVERSE ? -more.y : more.y});
    }
    if (quarter) t = INVERSE ? float2{t.y, -t.x} : float2{-t.y, t.x};
    if (REAL && LEVEL == 0) {
      z[at] = float2{fmaf(t.x, b.x, a.x), t.y * b.x};
      z[at + APART] = float2{fmaf(-t.x, b.x, a.x), -t.y * b.x};
    } else {  // six fused operations: a - t b = 2 a - (a + t b)
      const float2 sum = {fmaf(t.x, b.x, fmaf(-t.y, b.y, a.x)), fmaf(t.x, b.y, fmaf(t.y, b.x, a.y))};
      z[at] = sum;
      z[at + APART] = float2{fmaf(2.0f, a.x, -sum.x), fmaf(2.0f, a.y, -sum.y)};
    }
  }
}

template <Factors FACTORS, bool INVERSE, bool REAL, int BITS, int LEVEL = 0>
__device__ inline void levels(float2* z, const float2* power) {
  if constexpr (LEVEL < BITS) {
    level<FACTORS, INVERSE, REAL, BITS, LEVEL>(z, power);
    levels<FACTORS, INVERSE, REAL, BITS, LEVEL + 1>(z, power);
  }
}

__device__ inline float2 squared(float2 r) { return float2{fmaf(r.x, r.x, -r.y * r.y), 2.0f * r.x * r.y}; }

// power[i] = r^(2^i), from r and r^4: squaring doubles the error, so that many in a row would be felt.
template <int BITS>
__device__ inline void raise(float4 r, float2* power) {
#pragma unroll
  for (int i = 0; i < BITS; i++)
    power[i] = i == 0 ? float2{r.x, r.y} : i == 2 ? float2{r.z, r.w} : squared(power[i - 1]);
}

// Numbers of one pass to those of its neighbour.
template <class P, int FROM, int TO>
__device__ inline void exchange(float2* z, float* shared, int me) {
  constexpr int EARLIER = FROM < TO ? FROM : TO;
  const int from = padded(position<P, FROM>(first_butterfly<P, FROM>(me)));
  const int to = padded(position<P, TO>(first_butterfly<P, TO>(me)));
  if constexpr (P::SPLIT) {
#pragma unroll
    for (int i = 0; i < P::POINTS; i++) shared[from + padded(step<P, FROM>(i))] = z[i].x;
    meet<P, EARLIER>();
#pragma unroll
    for (int i = 0; i < P::POINTS; i++) z[i].x = shared[to + padded(step<P, TO>(i))];
    meet<P, EARLIER>();
#pragma unroll
    for (int i = 0; i < P::POINTS; i++) shared[from + padded(step<P, FROM>(i))] = z[i].y;
    meet<P, EARLIER>();
#pragma unroll
    for (int i = 0; i < P::POINTS; i++) z[i].y = shared[to + padded(step<P, TO>(i))];
  } else {
    float2* pairs = (float2*)shared;
#pragma unroll
    for (int i = 0; i < P::POINTS; i++) pairs[from + padded(step<P, FROM>(i))] = z[i];
    meet<P, EARLIER>();
#pragma unroll
    for (int i = 0; i < P::POINTS; i++) z[i] = pairs[to + padded(step<P, TO>(i))];
  }
}

// From the points of pass 0 to the values at the roots, in the order of the last pass. `block`: of the levels above.
template <class P, bool REAL, int PASS = 0>
__device__ inline void transform(float2* z, float* shared, const float4* table, int me, int block = 0) {
  constexpr int BITS = P::bits(PASS);
#pragma unroll
  for (int group = 0; group < P::POINTS >> BITS; group++) {
    if constexpr (PASS == 0 && P::OUTER == 0) {
      levels<ROOT, false, REAL, BITS>(z + (group << BITS), nullptr);
    } else {
      float2 power[BITS];
      const int own = (first_butterfly<P, PASS>(me) >> P::distance(PASS)) +
                      (group * P::LANES_OF_ROW >> P::distance(PASS)) + (block << P::before(PASS));
      raise<BITS>(table[P::roots(PASS) + own], power);
      levels<GIVEN, false, false, BITS>(z + (group << BITS), power);
    }
  }
  if constexpr (PASS + 1 < P::PASSES) {
    exchange<P, PASS, PASS + 1>(z, shared, me);
    transform<P, REAL, PASS + 1>(z, shared, table, me, block);
  }
}

// The way back, M times too large; the twist's factor of the position in its butterfly is left to `real_part`.
template <class P, int PASS = P::PASSES - 1>
__device__ inline void inverse(float2* z, float* shared, const float4* table, int me) {
  constexpr int BITS = P::bits(PASS);
#pragma unroll
  for (int group = 0; group < P::POINTS >> BITS; group++) {
    float2* own = z + (group << BITS);
    if constexpr (PASS == P::PASSES - 1) {
      levels<FIRST, true, false, BITS>(own, nullptr);
    } else {
      constexpr int WITHIN = (1 << P::distance(PASS)) - 1;
      const int offset = (first_butterfly<P, PASS>(me) & WITHIN) + (group * P::LANES_OF_ROW & WITHIN);
      float2 power[BITS];
      raise<BITS>(table[P::powers(PASS) + offset], power);
      if constexpr (PASS == 0 && P::OUTER == 0) {
        const float4 both = table[P::twist() + offset];
        const float2 twist = {both.x, both.y};
        power[BITS - 1] = product(power[BITS - 1], twist);
#pragma unroll
        for (int i = 0; i < 1 << BITS; i += 2) own[i] = product(own[i], twist);
      }
      levels<GIVEN, true, false, BITS>(own, power);
    }
  }
  if constexpr (PASS > 0) {
    exchange<P, PASS, PASS - 1>(z, shared, me);
    inverse<P, PASS - 1>(z, shared, table, me);
  }
}

template <class P>
__device__ inline float real_part(float2 z, int i) {
  const float2 c = unit((i & ((1 << P::bits(0)) - 1)) << (6 - P::bits(0)));
  return fmaf(z.x, c.x, z.y * c.y);
}

template <class P>
__device__ inline float imaginary_part(float2 z, int i) {
  const float2 c = unit((i & ((1 << P::bits(0)) - 1)) << (6 - P::bits(0)));
  return fmaf(z.y, c.x, -z.x * c.y);
}

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

// Numbers of a row for registers from `i` on, from position `side` M.
template <class P, typename T>
__device__ inline void load_ahead(float* ahead, const T* row, int i, int side, int left, bool wanted) {
#pragma unroll
  for (int j = 0; j < AHEAD && i + j < P::POINTS; j++) {
    const int n = step<P, 0>(i + j) + side * P::M;
    ahead[j] = wanted && has<P>(n, left) ? float(row[n]) : 0.0f;
  }
}

// The end of the forward: y of the convolution's values.
template <class P, typename T>
__device__ inline void store_output(const float2* z, const T* q, float factor, T* y, int left) {
#pragma unroll
  for (int side = 0; side < P::HALVES; side++) {
#pragma unroll
    for (int i = 0; i < P::POINTS; i += AHEAD) {
      float gate[AHEAD];
      load_ahead<P>(gate, q, i, side, left, P::GATED_AFTER);
#pragma unroll
      for (int j = 0; j < AHEAD && i + j < P::POINTS; j++) {
        const int n = step<P, 0>(i + j) + side * P::M;
        float a = result<P>(z[i + j], i + j, side);
        if (P::CURVED) a = gelu(a);
        if (P::MASKED) a *= factor;
        if (P::GATED_AFTER) a *= gate[j];
        if (has<P>(n, left)) y[n] = T(a);
      }
    }
  }
}

// dq, and in place of the convolution's values their gradient.
template <class P, typename T>
__device__ inline void turn_back(float2* z, const T* g, const T* q, float factor, T* dq, int left, bool live) {
#pragma unroll
  for (int i = 0; i < P::POINTS; i += AHEAD) {
    float dz[2][AHEAD] = {};
#pragma unroll
    for (int side = 0; side < P::HALVES; side++) {
      float gate[AHEAD];
      load_ahead<P>(dz[side], g, i, side, left, true);
      load_ahead<P>(gate, q, i, side, left, P::GATED_AFTER);
#pragma unroll
      for (int j = 0; j < AHEAD && i + j < P::POINTS; j++) {
        const int n = step<P, 0>(i + j) + side * P::M;
        const float a = result<P>(z[i + j], i + j, side);
        if (P::MASKED) dz[side][j] *= factor;
        if (P::GATED_AFTER && live && has<P>(n, left)) dq[n] = T(dz[side][j] * (P::CURVED ? gelu(a) : a));
        if (P::GATED_AFTER) dz[side][j] *= gate[j];
        if (P::CURVED) dz[side][j] *= gelu_slope(a);
      }
    }
#pragma unroll
    for (int j = 0; j < AHEAD && i + j < P::POINTS; j++) z[i + j] = float2{dz[0][j], dz[1][j]};
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

// du and dv.
template <class P, typename T>
__device__ inline void store_gradient(const float2* z, const T* u, const T* v, T* du, T* dv, int left) {
#pragma unroll
  for (int side = 0; side < P::HALVES; side++) {
#pragma unroll
    for (int i = 0; i < P::POINTS; i += AHEAD) {
      float first[AHEAD], gate[AHEAD];
      load_ahead<P>(first, u, i, side, left, P::GATED);
      load_ahead<P>(gate, v, i, side, left, P::GATED);
#pragma unroll
      for (int j = 0; j < AHEAD && i + j < P::POINTS; j++) {
        const int n = step<P, 0>(i + j) + side * P::M;
        const float dx = result<P>(z[i + j], i + j, side);
        if (!has<P>(n, left)) continue;
        du[n] = T(P::GATED ? dx * gate[j] : dx);
        if (P::GATED) dv[n] = T(dx * first[j]);
      }
    }
  }
}

// dk and dk_reverse.
template <class P>
__device__ inline void store_filter_gradient(const float2* z, float* dk, float* dk_reverse, int first, int taps,
                                             int taps_reverse) {
#pragma unroll
  for (int i = 0; i < P::POINTS; i++) {
#pragma unroll
    for (int side = 0; side < 2; side++) {
      const int n = first + step<P, 0>(i) + side * P::M;
      const float d = result<P>(z[i], i, side);
      if (n < taps) dk[n] = d;
      if (!P::MIRRORED) continue;
      if (n == 0) dk_reverse[0] = d;
      else if (2 * P::M - n < taps_reverse) dk_reverse[2 * P::M - n] = -d;
    }
  }
}

// spectrum[h] = transform of k[h] and, mirrored, of k_reverse[h]; divided by M for the way back.
template <class P>
__device__ inline void spectrum(const float* k, const float* k_reverse, const float* table, float* out, float* shared,
                                unsigned heads, int taps, int taps_reverse) {
  const int me = threadIdx.x % P::THREADS, first = first_butterfly<P, 0>(me);
  const unsigned slot = threadIdx.x / P::THREADS, unit = blockIdx.x * P::ROWS + slot, head = min(unit, heads - 1);
  float2 z[P::POINTS];
  load_row<P>(z, k + size_t(head) * taps + first, taps - first);
  if (P::MIRRORED) mirror<P>(z, k_reverse + size_t(head) * taps_reverse, first, taps_reverse);
  transform<P, false>(z, shared + slot * P::SHARED, (const float4*)table, me);
  if (unit >= heads) return;
  float2* row = (float2*)out + size_t(head) * P::M + me;
#pragma unroll
  for (int i = 0; i < P::POINTS; i++) row[i * P::THREADS] = float2{z[i].x * (1.0f / P::M), z[i].y * (1.0f / P::M)};
}

// y. Rows of one head follow each other, so that they find its spectrum in the cache.
template <class P, typename T>
__device__ inline void forward(const T* u, const T* v, const T* q, const float* filter, const float* D,
                               const float* mask, const float* table, T* y, float* shared, unsigned batch,
                               unsigned heads, int length, Strides us, Strides vs, Strides qs) {
  const int me = threadIdx.x % P::THREADS, first = first_butterfly<P, 0>(me), left = length - first;
  const unsigned slot = threadIdx.x / P::THREADS, unit = blockIdx.x * P::ROWS + slot, units = batch * heads;
  const unsigned head = min(unit, units - 1) / batch, b = min(unit, units - 1) % batch;
  float2 z[P::POINTS];
  load_row<P>(z, u + us.of(b, head) + first, left);
  if (P::GATED) gate_row<P>(z, v + vs.of(b, head) + first, left);
  transform<P, !P::FOLDED>(z, shared + slot * P::SHARED, (const float4*)table, me);
  multiply<P>(z, (const float2*)filter + size_t(head) * P::M + me, P::SKIPS ? D[head] * (1.0f / P::M) : 0.0f, false);
  inverse<P>(z, shared + slot * P::SHARED, (const float4*)table, me);
  if (P::ROWS > 1 && unit >= units) return;
  const float factor = P::MASKED ? mask[b * heads + head] : 1.0f;
  store_output<P>(z, q + qs.of(b, head) + first, factor, y + (size_t(b) * heads + head) * length + first, left);
}

// Gradients in u, v and q, and of each head the sum over a part of the batch of conj(X) dZ, whose inverse is dk.
// Every part has rows. X is kept while z is computed, in shared memory (KEEP > 0) or in `kept`; the sum is made in shared memory (KEEP > 1) or
// in its place. A thread reads only what it wrote there.
template <class P, int KEEP, typename T>
__device__ inline void backward(const T* g, const T* u, const T* v, const T* q, const float* filter, const float* D,
                                const float* mask, const float* table, T* du, T* dv, T* dq, float* partial,
                                float* kept_work, float* shared, unsigned batch, unsigned heads, int length, unsigned parts,
                                Strides gs, Strides us, Strides vs, Strides qs) {
  const int me = threadIdx.x % P::THREADS, first = first_butterfly<P, 0>(me), left = length - first;
  const unsigned slot = threadIdx.x / P::THREADS, unit = blockIdx.x * P::ROWS + slot, units = parts * heads;
  const unsigned head = min(unit, units - 1) / parts, part = min(unit, units - 1) % parts;
  const unsigned each = (batch + parts - 1) / parts;
  const float2* row_filter = (const float2*)filter + size_t(head) * P::M + me;
  const float skip = P::SKIPS ? D[head] * (1.0f / P::M) : 0.0f;
  float2* out = (float2*)partial + (size_t(head) * parts + part) * P::M + me;
  float2* spare = (float2*)(shared + P::ROWS * P::SHARED) + slot * P::M + me;
  float2* kept = KEEP > 0 ? spare : (float2*)kept_work + (size_t(head) * parts + part) * P::M + me;
  float2* sums = KEEP > 1 ? spare + P::ROWS * P::M : out;
  shared += slot * P::SHARED;
  for (unsigned turn = 0; turn < each; turn++) {
    const bool live = unit < units && part * each + turn < batch;
    const unsigned b = min(part * each + turn, batch - 1);
    const size_t row = (size_t(b) * heads + head) * length + first;
    const T *own_u = u + us.of(b, head) + first, *own_v = v + vs.of(b, head) + first, *own_g = g + gs.of(b, head) + first;
    const float factor = P::MASKED ? mask[b * heads + head] : 1.0f;
    float2 z[P::POINTS];
    load_row<P>(z, own_u, left);
    if (P::GATED) gate_row<P>(z, own_v, left);
    transform<P, !P::FOLDED>(z, shared, (const float4*)table, me);
    if (KEEP > 0 || live) {
#pragma unroll
      for (int i = 0; i < P::POINTS; i++) kept[i * P::THREADS] = z[i];
    }
    if (P::GATED_AFTER || P::CURVED) {  // the forward's output is needed again
      multiply<P>(z, row_filter, skip, false);
      inverse<P>(z, shared, (const float4*)table, me);
      turn_back<P>(z, own_g, q + qs.of(b, head) + first, factor, dq + row, left, live);
    } else {
      load_gradient<P>(z, own_g, factor, left);
      meet<P, 0>();  // no way back was there, so that others may still read where this thread writes next
    }
    transform<P, !P::FOLDED>(z, shared, (const float4*)table, me);
    if (live) add_terms<P, (KEEP > 1 ? 2 : 8)>(sums, kept, z, turn == 0);
    multiply<P>(z, row_filter, skip, true);
    inverse<P>(z, shared, (const float4*)table, me);
    if (live) store_gradient<P>(z, own_u, own_v, du + row, dv + row, left);
  }
  if constexpr (KEEP == 2) {
    if (unit >= units) return;
#pragma unroll
    for (int i = 0; i < P::POINTS; i++) out[i * P::THREADS] = sums[i * P::THREADS];
  }
}

// dk and dk_reverse from the sums of `backward`, added up in order. dD is dk[0].
template <class P>
__device__ inline void filter_grad(const float* partial, const float* table, float* dk, float* dk_reverse,
                                   float* shared, unsigned heads, int taps, int taps_reverse, unsigned parts) {
  const int me = threadIdx.x % P::THREADS, first = first_butterfly<P, 0>(me);
  const unsigned slot = threadIdx.x / P::THREADS, unit = blockIdx.x * P::ROWS + slot, head = min(unit, heads - 1);
  const float2* sums = (const float2*)partial + size_t(head) * parts * P::M + me;
  float2 z[P::POINTS];
#pragma unroll
  for (int i = 0; i < P::POINTS; i++) z[i] = float2{0.0f, 0.0f};
  for (unsigned part = 0; part < parts; part++) {
#pragma unroll
    for (int i = 0; i < P::POINTS; i++) {
      const float2 more = sums[size_t(part) * P::M + i * P::THREADS];
      z[i] = float2{fmaf(more.x, 1.0f / P::M, z[i].x), fmaf(more.y, 1.0f / P::M, z[i].y)};
    }
  }
  inverse<P>(z, shared + slot * P::SHARED, (const float4*)table, me);
  if (unit >= heads) return;
  store_filter_gradient<P>(z, dk + size_t(head) * taps, dk_reverse + size_t(head) * taps_reverse, first, taps,
                           taps_reverse);
}

// ---------------------------------------------------------------- rows that are too long for a block
// Three kernels: the first 2^OUTER points a thread (columns), the blocks that this leaves (rows), and columns again.
// Between them numbers are in a workspace (rows, 2^OUTER, 2^LOG_INNER), for some rows at a time.

enum ColumnStage { SIGNAL, GRADIENT, FILTER, OUTPUT, TURN, BACK, FILTER_GRADIENT };

// SIGNAL, GRADIENT, FILTER: from u v, g or k to the workspace. OUTPUT, BACK, FILTER_GRADIENT: from there to y, to du and
// dv, to dk. TURN: from the convolution's values there to their gradient, and dq. Rows are those from `row` on.
template <class P, ColumnStage STAGE, typename T>
__device__ inline void columns(const T* g, const T* u, const T* v, const T* q, const float* mask, const float* table,
                               float* work, T* out, T* dv, unsigned batch, unsigned heads, unsigned row, int length,
                               int taps_reverse, Strides gs, Strides us, Strides vs, Strides qs) {
  constexpr unsigned BLOCKS_OF_ROW = (P::INNER + 255) / 256;
  const int first = blockIdx.x % BLOCKS_OF_ROW * 256 + threadIdx.x, left = length - first;
  const unsigned local = blockIdx.x / BLOCKS_OF_ROW, head = (row + local) / batch, b = (row + local) % batch;
  const float factor = P::MASKED ? mask[b * heads + head] : 1.0f;
  const size_t own = (size_t(b) * heads + head) * length + first;
  float2* place = (float2*)work + size_t(local) * P::M + first;
  float2 z[P::POINTS];
  if constexpr (STAGE == SIGNAL) {
    load_row<P>(z, u + us.of(b, head) + first, left);
    if (P::GATED) gate_row<P>(z, v + vs.of(b, head) + first, left);
  } else if constexpr (STAGE == GRADIENT) {
    load_gradient<P>(z, g + gs.of(b, head) + first, factor, left);
  } else if constexpr (STAGE == FILTER) {
    load_row<P>(z, u + us.of(b, head) + first, left);
    if (P::MIRRORED) mirror<P>(z, v + size_t(head) * taps_reverse, first, taps_reverse);
  } else {
    const float4 low = ((const float4*)table)[2 * first], high = ((const float4*)table)[2 * first + 1];
    const float2 twist = {high.z, high.w};
    float2 power[6] = {{low.x, low.y}, squared(float2{low.x, low.y}), {low.z, low.w}, squared(float2{low.z, low.w}),
                       {high.x, high.y}, squared(float2{high.x, high.y})};
    power[P::bits(0) - 1] = product(power[P::bits(0) - 1], twist);
#pragma unroll
    for (int i = 0; i < P::POINTS; i++) {
      z[i] = place[i * P::INNER];
      if (i % 2 == 0) z[i] = product(z[i], twist);
    }
    levels<GIVEN, true, false, P::bits(0)>(z, power);
    if constexpr (STAGE == OUTPUT) store_output<P>(z, q + qs.of(b, head) + first, factor, out + own, left);
    if constexpr (STAGE == BACK)
      store_gradient<P>(z, u + us.of(b, head) + first, v + vs.of(b, head) + first, out + own, dv + own, left);
    if constexpr (STAGE == FILTER_GRADIENT)
      store_filter_gradient<P>(z, out + size_t(head) * length, dv + size_t(head) * taps_reverse, first, length,
                               taps_reverse);
    if constexpr (STAGE == TURN)
      turn_back<P>(z, g + gs.of(b, head) + first, q + qs.of(b, head) + first, factor, out + own, left, true);
    else return;
  }
  levels<ROOT, false, STAGE != FILTER && !P::FOLDED, P::bits(0)>(z, nullptr);
#pragma unroll
  for (int i = 0; i < P::POINTS; i++) place[i * P::INNER] = z[i];
}

enum RowStage { SPECTRUM, CONVOLVE, TRANSFORM, CONVOLUTION, ADJOINT, INVERSE };

// One block of one row, in place. SPECTRUM: its transform, divided by the whole M. CONVOLVE: transform, product, inverse.
// TRANSFORM: the first of these alone; CONVOLUTION: the others, from `kept`. ADJOINT, for all rows of a head here: the
// same with the conjugate product, and the sum of conj(kept) dZ. INVERSE: of the sums.
template <class P, RowStage STAGE>
__device__ inline void rows(const float* filter, const float* D, const float* table, float* work, float* kept_work,
                            float* sums_work, float* shared, unsigned batch, unsigned row) {
  constexpr unsigned BLOCKS_OF_ROW = 1 << P::OUTER;
  constexpr float SCALE = 1.0f / (P::M << P::OUTER);
  const int me = threadIdx.x, first = first_butterfly<P, 0>(me), block = blockIdx.x % BLOCKS_OF_ROW;
  const unsigned unit = blockIdx.x / BLOCKS_OF_ROW, rows = STAGE == ADJOINT ? batch : 1;
  const unsigned head = STAGE == ADJOINT ? row / batch + unit : (row + unit) / batch;
  const float2* own_filter = (const float2*)filter + (size_t(head) * BLOCKS_OF_ROW + block) * P::M + me;
  const float skip = P::SKIPS ? D[head] * SCALE : 0.0f;
  for (unsigned turn = 0; turn < rows; turn++) {
    const size_t at = ((size_t(unit) * rows + turn) * BLOCKS_OF_ROW + block) * P::M;
    float2 *place = (float2*)work + at + first, *ordered = (float2*)work + at + me;
    const float2* kept = (const float2*)kept_work + at + me;
    float2* sums = (float2*)sums_work + (size_t(head) * BLOCKS_OF_ROW + block) * P::M + me;
    float2 z[P::POINTS];
    if constexpr (STAGE == CONVOLUTION || STAGE == INVERSE) {
#pragma unroll
      for (int i = 0; i < P::POINTS; i++)
        z[i] = STAGE == INVERSE ? float2{ordered[i * P::THREADS].x * SCALE, ordered[i * P::THREADS].y * SCALE}
                                : kept[i * P::THREADS];
    } else {
#pragma unroll
      for (int i = 0; i < P::POINTS; i++) z[i] = place[step<P, 0>(i)];
      transform<P, false>(z, shared, (const float4*)table, me, block);
    }
    if constexpr (STAGE == SPECTRUM || STAGE == TRANSFORM) {
#pragma unroll  // in place: all have read since the first exchange
      for (int i = 0; i < P::POINTS; i++)
        ordered[i * P::THREADS] = STAGE == SPECTRUM ? float2{z[i].x * SCALE, z[i].y * SCALE} : z[i];
      return;
    }
    if constexpr (STAGE == ADJOINT) add_terms<P, 8>(sums, kept, z, turn == 0);
    if constexpr (STAGE != INVERSE) multiply<P>(z, own_filter, skip, STAGE == ADJOINT);
    inverse<P>(z, shared, (const float4*)table, me);
#pragma unroll
    for (int i = 0; i < P::POINTS; i++) place[step<P, 0>(i)] = z[i];
  }
}

}  // namespace fftconv

// The numbers after the type are those of fftconv::Plan, and the blocks that a multiprocessor is to hold at once.
#define FFTCONV_PLAN int LOG_M, int LOG_POINTS, int ROWS, bool SPLIT, unsigned OPTIONS, int BLOCKS
#define FFTCONV_KERNEL __global__ void __launch_bounds__((ROWS << LOG_M) >> LOG_POINTS, BLOCKS)

template <FFTCONV_PLAN>
FFTCONV_KERNEL fftconv_spectrum(const float* k, const float* k_reverse, const float* table, float* out, unsigned heads,
                                unsigned taps, unsigned taps_reverse) {
  extern __shared__ float shared_memory[];
  using P = fftconv::Plan<LOG_M, LOG_POINTS, ROWS, SPLIT, OPTIONS | fftconv::FOLD | fftconv::RAGGED>;
  fftconv::spectrum<P>(k, k_reverse, table, out, shared_memory, heads, taps, taps_reverse);
}

template <typename T, FFTCONV_PLAN>
FFTCONV_KERNEL fftconv_forward(const T* u, const T* v, const T* q, const float* filter, const float* D,
                               const float* mask, const float* table, T* y, unsigned batch, unsigned heads,
                               unsigned length, size_t u_batch, size_t u_channel, size_t v_batch, size_t v_channel,
                               size_t q_batch, size_t q_channel) {
  extern __shared__ float shared_memory[];
  using P = fftconv::Plan<LOG_M, LOG_POINTS, ROWS, SPLIT, OPTIONS>;
  fftconv::forward<P>(u, v, q, filter, D, mask, table, y, shared_memory, batch, heads, length, {u_batch, u_channel},
                      {v_batch, v_channel}, {q_batch, q_channel});
}

// KEEP: see fftconv::backward.
template <typename T, FFTCONV_PLAN, int KEEP>
FFTCONV_KERNEL fftconv_backward(const T* g, const T* u, const T* v, const T* q, const float* filter, const float* D,
                                const float* mask, const float* table, T* du, T* dv, T* dq, float* partial,
                                float* kept, unsigned batch, unsigned heads, unsigned length, unsigned parts,
                                size_t g_batch, size_t g_channel, size_t u_batch, size_t u_channel, size_t v_batch,
                                size_t v_channel, size_t q_batch, size_t q_channel) {
  extern __shared__ float shared_memory[];
  using P = fftconv::Plan<LOG_M, LOG_POINTS, ROWS, SPLIT, OPTIONS>;
  fftconv::backward<P, KEEP>(g, u, v, q, filter, D, mask, table, du, dv, dq, partial, kept, shared_memory, batch,
                             heads, length, parts, {g_batch, g_channel}, {u_batch, u_channel}, {v_batch, v_channel},
                             {q_batch, q_channel});
}

template <FFTCONV_PLAN>
FFTCONV_KERNEL fftconv_filter_grad(const float* partial, const float* table, float* dk, float* dk_reverse,
                                   unsigned heads, unsigned taps, unsigned taps_reverse, unsigned parts) {
  extern __shared__ float shared_memory[];
  using P = fftconv::Plan<LOG_M, LOG_POINTS, ROWS, SPLIT, OPTIONS | fftconv::FOLD | fftconv::RAGGED>;
  fftconv::filter_grad<P>(partial, table, dk, dk_reverse, shared_memory, heads, taps, taps_reverse, parts);
}

template <typename T, int OUTER, int LOG_INNER, unsigned OPTIONS, fftconv::ColumnStage STAGE>
__global__ void __launch_bounds__(256) fftconv_columns(
    const T* g, const T* u, const T* v, const T* q, const float* mask, const float* table, float* work, T* out, T* dv,
    unsigned batch, unsigned heads, unsigned row, unsigned length, unsigned taps_reverse, size_t g_batch,
    size_t g_channel, size_t u_batch, size_t u_channel, size_t v_batch, size_t v_channel, size_t q_batch,
    size_t q_channel) {
  using P = fftconv::Columns<OUTER, LOG_INNER, OPTIONS>;
  fftconv::columns<P, STAGE>(g, u, v, q, mask, table, work, out, dv, batch, heads, row, length, taps_reverse,
                             {g_batch, g_channel}, {u_batch, u_channel}, {v_batch, v_channel}, {q_batch, q_channel});
}

template <FFTCONV_PLAN, int OUTER, fftconv::RowStage STAGE>
FFTCONV_KERNEL fftconv_rows(const float* filter, const float* D, const float* table, float* work, float* kept,
                            float* sums, unsigned batch, unsigned row) {
  extern __shared__ float shared_memory[];
  using P = fftconv::Plan<LOG_M, LOG_POINTS, ROWS, SPLIT, OPTIONS, OUTER>;
  fftconv::rows<P, STAGE>(filter, D, table, work, kept, sums, shared_memory, batch, row);
}
