// Long convolution by FFT: y = q * mask * gelu(k * (u v) + D (u v)), its gradients, and the filters' spectra.
//
// Twin of cuda/fftconv.cu: the same names, the same algorithm. Every function works for one thread of a threadgroup; rows of
// inputs may have any strides, `along` is the one between their numbers. Inputs are template types because MLX keeps arrays
// of fewer than 8 elements in the constant address space.
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
// of the tree in registers; between passes the numbers are exchanged through threadgroup memory, in place: a thread writes
// where it has read, so that one barrier an exchange is enough.
#include <metal_stdlib>
using namespace metal;

namespace fftconv {

constant constexpr uint LANES = 32;  // threads of a warp

// Numbers that a thread loads before it stores any: a load would wait behind a store that may be to its place.
constant constexpr int AHEAD = 16;

// What a call has: bits of OPTIONS. FOLD: rows are longer than M. RAGGED: they end before M (FOLD: before 2 M).
constant constexpr uint GATE_BEFORE = 1, GATE_AFTER = 2, SKIP = 4, MASK = 8, GELU = 16, REVERSE = 32, FOLD = 64, RAGGED = 128;

// cos(pi i / 128)
constant constexpr float COSINE[65] = {
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

template <uint OPTIONS>
struct Options {
  static constant constexpr bool GATED = OPTIONS & GATE_BEFORE, GATED_AFTER = OPTIONS & GATE_AFTER, SKIPS = OPTIONS & SKIP;
  static constant constexpr bool MASKED = OPTIONS & MASK, CURVED = OPTIONS & GELU, MIRRORED = OPTIONS & REVERSE;
  static constant constexpr bool FOLDED = OPTIONS & FOLD, CUT = OPTIONS & RAGGED;
  static constant constexpr int HALVES = FOLDED ? 2 : 1;
};

// How a transform of M = 2^LOG_M points is shared out. PASSES passes of nearly equal depth, the deeper ones first.
// OUTER: levels of a longer transform above it, see `Columns`.
template <int LOG_M_, int LOG_POINTS_, int ROWS_, bool SPLIT_, uint OPTIONS = 0, int OUTER_ = 0>
struct Plan : Options<OPTIONS> {
  static constant constexpr int LOG_M = LOG_M_, LOG_POINTS = LOG_POINTS_, ROWS = ROWS_, OUTER = OUTER_;  // ROWS: of a block
  static constant constexpr bool SPLIT = SPLIT_;  // exchange real and imaginary parts one after the other, in half the memory
  static constant constexpr int M = 1 << LOG_M, POINTS = 1 << LOG_POINTS, THREADS = M / POINTS;
  static constant constexpr int PASSES = (LOG_M + LOG_POINTS - 1) / LOG_POINTS;
  static constant constexpr int LANES_OF_ROW = THREADS < int(LANES) ? THREADS : int(LANES);
  static constant constexpr bool PADDED = M < 8192;
  static constant constexpr int SHARED = (PADDED ? M + M / 16 : M) * (SPLIT ? 1 : 2);  // floats of a row

  static constexpr int bits(int pass) { return LOG_M / PASSES + (pass < LOG_M % PASSES); }
  // levels above a pass
  static constexpr int before(int pass) { return pass == 0 ? 0 : before(pass - 1) + bits(pass - 1); }
  // log2 of the distance of a pass's points
  static constexpr int distance(int pass) { return LOG_M - before(pass) - bits(pass); }
  // Factors in the table: a root for each block of a pass, but for the very first one; a power for each position of a
  // pass, pass 0 first; the twist of pass 0.
  static constexpr int roots(int pass) {
    return pass == 0 ? 0 : roots(pass - 1) + (OUTER || pass > 1 ? 1 << (OUTER + before(pass - 1)) : 0);
  }
  static constexpr int powers(int pass) {
    return pass == 0 ? roots(PASSES) : powers(pass - 1) + (1 << distance(pass - 1));
  }
  static constexpr int twist() { return powers(PASSES - 1); }
};

// The outermost levels of a transform that is too long for a block: 2^OUTER points, 2^LOG_INNER apart, in a thread.
template <int OUTER, int LOG_INNER, uint OPTIONS>
struct Columns : Options<OPTIONS> {
  static constant constexpr int INNER = 1 << LOG_INNER, POINTS = 1 << OUTER, M = POINTS << LOG_INNER, LANES_OF_ROW = 0;

  static constexpr int bits(int) { return OUTER; }
  static constexpr int distance(int) { return LOG_INNER; }
};

// Every 16 numbers one is left free, which spreads the strides of the passes over the banks; unless that were more than the
// 32 KiB that there are.
template <class P>
constexpr int padded(int position) { return P::PADDED ? position + (position >> 4) : position; }

// A pass has M / radix butterflies. The lanes of a warp have neighbouring ones, so that a warp's blocks are soon its
// own. The first of a thread's; the others follow at LANES_OF_ROW, which changes other bits of the number.
template <class P, int PASS>
inline int first_butterfly(int me) {
  constexpr int GROUPS = P::POINTS >> P::bits(PASS);
  return me / P::LANES_OF_ROW * (GROUPS * P::LANES_OF_ROW) + me % P::LANES_OF_ROW;
}

// Position of a butterfly's first point; the others follow at 1 << distance.
template <class P, int PASS>
constexpr int position(int butterfly) {
  constexpr int DISTANCE = P::distance(PASS);
  return ((butterfly >> DISTANCE) << (DISTANCE + P::bits(PASS))) + (butterfly & ((1 << DISTANCE) - 1));
}

// Position of register i, as a distance from register 0's.
template <class P, int PASS>
constexpr int step(int i) {
  constexpr int BITS = P::bits(PASS);
  return position<P, PASS>((i >> BITS) * P::LANES_OF_ROW) + ((i & ((1 << BITS) - 1)) << P::distance(PASS));
}

// Waits for the threads that have numbers of one block of the pass, at least.
template <class P, int PASS>
inline void meet() {
  if (P::THREADS <= int(LANES) || P::POINTS * int(LANES) >> (P::LOG_M - P::before(PASS))) simdgroup_barrier(mem_flags::mem_threadgroup);
  else threadgroup_barrier(mem_flags::mem_threadgroup);
}

inline float2 product(float2 a, float2 b) {
  return float2(fma(a.x, b.x, -a.y * b.y), fma(a.x, b.y, a.y * b.x));
}

// exp(i pi angle / 128), 0 <= angle <= 64
inline float2 unit(int angle) { return float2(COSINE[angle], COSINE[64 - angle]); }

// The lowest `bits` of k, at most 5, in the other order.
constexpr int reversed(int k, int bits) {
  return ((k & 1) << 4 | (k & 2) << 2 | (k & 4) | (k & 8) >> 2 | (k & 16) >> 4) >> (5 - bits);
}

// Factors of a pass: ROOT is the whole transform's first, whose block has the root i: all constants. FIRST is the
// inverse's first, with factors of position 0: constants too. Otherwise power[n] = r^(2^n) for the pass's own r.
enum Factors { ROOT, FIRST, GIVEN };

// One level of a pass: a, b -> a + t b, a - t b. REAL: imaginary parts are still zero.
template <Factors FACTORS, bool INVERSE, bool REAL, int BITS, int LEVEL>
inline void level(thread float2* z, thread const float2* power) {
  constexpr int APART = 1 << (INVERSE ? LEVEL : BITS - 1 - LEVEL);
#pragma clang loop unroll(full)
  for (int pair = 0; pair < 1 << (BITS - 1); pair++) {
    const int block = pair / APART, offset = pair % APART, at = 2 * APART * block + offset;
    const int turn = INVERSE ? offset : reversed(block, LEVEL);  // t has the factor exp(+-i pi turn / 2^LEVEL)
    const bool quarter = LEVEL > 0 && turn >= (1 << LEVEL) / 2;
    const int rest = turn - (quarter ? (1 << LEVEL) / 2 : 0);
    const float2 a = z[at], b = z[at + APART];
    if (FACTORS == FIRST && rest == 0) {
      const float2 c = quarter ? (INVERSE ? float2(b.y, -b.x) : float2(-b.y, b.x)) : b;
      z[at] = float2(a.x + c.x, a.y + c.y);
      z[at + APART] = float2(a.x - c.x, a.y - c.y);
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
      if (rest) t = product(t, float2(more.x, INVERSE ? -more.y : more.y));
    }
    if (quarter) t = INVERSE ? float2(t.y, -t.x) : float2(-t.y, t.x);
    if (REAL && LEVEL == 0) {
      z[at] = float2(fma(t.x, b.x, a.x), t.y * b.x);
      z[at + APART] = float2(fma(-t.x, b.x, a.x), -t.y * b.x);
    } else {  // six fused operations: a - t b = 2 a - (a + t b)
      const float2 sum = float2(fma(t.x, b.x, fma(-t.y, b.y, a.x)), fma(t.x, b.y, fma(t.y, b.x, a.y)));
      z[at] = sum;
      z[at + APART] = float2(fma(2.0f, a.x, -sum.x), fma(2.0f, a.y, -sum.y));
    }
  }
}

template <Factors FACTORS, bool INVERSE, bool REAL, int BITS, int LEVEL = 0>
inline void levels(thread float2* z, thread const float2* power) {
  if constexpr (LEVEL < BITS) {
    level<FACTORS, INVERSE, REAL, BITS, LEVEL>(z, power);
    levels<FACTORS, INVERSE, REAL, BITS, LEVEL + 1>(z, power);
  }
}

inline float2 squared(float2 r) { return float2(fma(r.x, r.x, -r.y * r.y), 2.0f * r.x * r.y); }

// Entry i of the table: a factor and its fourth power.
inline float4 factor(const device float2* table, int i) { return float4(table[2 * i], table[2 * i + 1]); }

// power[i] = r^(2^i), from r and r^4: squaring doubles the error, so that many in a row would be felt.
template <int BITS>
inline void raise(float4 r, thread float2* power) {
#pragma clang loop unroll(full)
  for (int i = 0; i < BITS; i++)
    power[i] = i == 0 ? float2(r.x, r.y) : i == 2 ? float2(r.z, r.w) : squared(power[i - 1]);
}

// Numbers of one pass to those of its neighbour.
template <class P, int FROM, int TO>
inline void exchange(thread float2* z, threadgroup float* shared, int me) {
  constexpr int EARLIER = FROM < TO ? FROM : TO;
  const int from = padded<P>(position<P, FROM>(first_butterfly<P, FROM>(me)));
  const int to = padded<P>(position<P, TO>(first_butterfly<P, TO>(me)));
  if constexpr (P::SPLIT) {
#pragma clang loop unroll(full)
    for (int i = 0; i < P::POINTS; i++) shared[from + padded<P>(step<P, FROM>(i))] = z[i].x;
    meet<P, EARLIER>();
#pragma clang loop unroll(full)
    for (int i = 0; i < P::POINTS; i++) z[i].x = shared[to + padded<P>(step<P, TO>(i))];
    meet<P, EARLIER>();
#pragma clang loop unroll(full)
    for (int i = 0; i < P::POINTS; i++) shared[from + padded<P>(step<P, FROM>(i))] = z[i].y;
    meet<P, EARLIER>();
#pragma clang loop unroll(full)
    for (int i = 0; i < P::POINTS; i++) z[i].y = shared[to + padded<P>(step<P, TO>(i))];
  } else {
    threadgroup float2* pairs = (threadgroup float2*)shared;
#pragma clang loop unroll(full)
    for (int i = 0; i < P::POINTS; i++) pairs[from + padded<P>(step<P, FROM>(i))] = z[i];
    meet<P, EARLIER>();
#pragma clang loop unroll(full)
    for (int i = 0; i < P::POINTS; i++) z[i] = pairs[to + padded<P>(step<P, TO>(i))];
  }
}

// From the points of pass 0 to the values at the roots, in the order of the last pass. `block`: of the levels above.
template <class P, bool REAL, int PASS = 0>
inline void transform(thread float2* z, threadgroup float* shared, const device float2* table, int me, int block = 0) {
  constexpr int BITS = P::bits(PASS);
#pragma clang loop unroll(full)
  for (int group = 0; group < P::POINTS >> BITS; group++) {
    if constexpr (PASS == 0 && P::OUTER == 0) {
      levels<ROOT, false, REAL, BITS>(z + (group << BITS), nullptr);
    } else {
      float2 power[BITS];
      const int own = (first_butterfly<P, PASS>(me) >> P::distance(PASS)) +
                      (group * P::LANES_OF_ROW >> P::distance(PASS)) + (block << P::before(PASS));
      raise<BITS>(factor(table, P::roots(PASS) + own), power);
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
inline void inverse(thread float2* z, threadgroup float* shared, const device float2* table, int me) {
  constexpr int BITS = P::bits(PASS);
#pragma clang loop unroll(full)
  for (int group = 0; group < P::POINTS >> BITS; group++) {
    thread float2* own = z + (group << BITS);
    if constexpr (PASS == P::PASSES - 1) {
      levels<FIRST, true, false, BITS>(own, nullptr);
    } else {
      constexpr int WITHIN = (1 << P::distance(PASS)) - 1;
      const int offset = (first_butterfly<P, PASS>(me) & WITHIN) + (group * P::LANES_OF_ROW & WITHIN);
      float2 power[BITS];
      raise<BITS>(factor(table, P::powers(PASS) + offset), power);
      if constexpr (PASS == 0 && P::OUTER == 0) {
        const float4 both = factor(table, P::twist() + offset);
        const float2 twist = float2(both.x, both.y);
        power[BITS - 1] = product(power[BITS - 1], twist);
#pragma clang loop unroll(full)
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
inline float real_part(float2 z, int i) {
  const float2 c = unit((i & ((1 << P::bits(0)) - 1)) << (6 - P::bits(0)));
  return fma(z.x, c.x, z.y * c.y);
}

template <class P>
inline float imaginary_part(float2 z, int i) {
  const float2 c = unit((i & ((1 << P::bits(0)) - 1)) << (6 - P::bits(0)));
  return fma(z.y, c.x, -z.x * c.y);
}

// Whether a row has a number `step` after the one at `row`, of which `left` remain.
template <class P>
inline bool has(int step, int left) { return !P::CUT || step < left; }

// A row of numbers, from position `first` on; zeros beyond its end.
template <class P, typename Row>
inline void load_row(thread float2* z, Row row, int along, int left) {
#pragma clang loop unroll(full)
  for (int i = 0; i < P::POINTS; i++) {
    const int n = step<P, 0>(i);
    z[i].x = has<P>(n, left) ? float(row[n * along]) : 0.0f;
    z[i].y = P::FOLDED && has<P>(n + P::M, left) ? float(row[(n + P::M) * along]) : 0.0f;
  }
}

template <class P, typename Row>
inline void gate_row(thread float2* z, Row row, int along, int left) {
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
  return fma(z * 0.3989422804014327f, exp(-0.5f * z * z), 0.5f * (1.0f + error_function(z * 0.70710678118654752f)));
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

// Numbers of a row for registers from `i` on, from position `side` M.
template <class P, typename Row>
inline void load_ahead(thread float* ahead, Row row, int along, int i, int side, int left, bool wanted) {
#pragma clang loop unroll(full)
  for (int j = 0; j < AHEAD && i + j < P::POINTS; j++) {
    const int n = step<P, 0>(i + j) + side * P::M;
    ahead[j] = wanted && has<P>(n, left) ? float(row[n * along]) : 0.0f;
  }
}

// The end of the forward: y of the convolution's values.
template <class P, typename Gate, typename T>
inline void store_output(thread const float2* z, Gate q, int along, float factor, device T* y, int left) {
#pragma clang loop unroll(full)
  for (int side = 0; side < P::HALVES; side++) {
#pragma clang loop unroll(full)
    for (int i = 0; i < P::POINTS; i += AHEAD) {
      float gate[AHEAD];
      load_ahead<P>(gate, q, along, i, side, left, P::GATED_AFTER);
#pragma clang loop unroll(full)
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
template <class P, typename G, typename Gate, typename T>
inline void turn_back(thread float2* z, G g, int g_along, Gate q, int q_along, float factor, device T* dq, int left,
                      bool live) {
#pragma clang loop unroll(full)
  for (int i = 0; i < P::POINTS; i += AHEAD) {
    float dz[2][AHEAD] = {};
#pragma clang loop unroll(full)
    for (int side = 0; side < P::HALVES; side++) {
      float gate[AHEAD];
      load_ahead<P>(dz[side], g, g_along, i, side, left, true);
      load_ahead<P>(gate, q, q_along, i, side, left, P::GATED_AFTER);
#pragma clang loop unroll(full)
      for (int j = 0; j < AHEAD && i + j < P::POINTS; j++) {
        const int n = step<P, 0>(i + j) + side * P::M;
        const float a = result<P>(z[i + j], i + j, side);
        if (P::MASKED) dz[side][j] *= factor;
        if (P::GATED_AFTER && live && has<P>(n, left)) dq[n] = T(dz[side][j] * (P::CURVED ? gelu(a) : a));
        if (P::GATED_AFTER) dz[side][j] *= gate[j];
        if (P::CURVED) dz[side][j] *= gelu_slope(a);
      }
    }
#pragma clang loop unroll(full)
    for (int j = 0; j < AHEAD && i + j < P::POINTS; j++) z[i + j] = float2(dz[0][j], dz[1][j]);
  }
}

// The same where nothing but a mask follows the convolution.
template <class P, typename G>
inline void load_gradient(thread float2* z, G g, int along, float factor, int left) {
  load_row<P>(z, g, along, left);
  if constexpr (P::MASKED) {
#pragma clang loop unroll(full)
    for (int i = 0; i < P::POINTS; i++) z[i] = float2(z[i].x * factor, z[i].y * factor);
  }
}

// du and dv.
template <class P, typename U, typename V, typename T>
inline void store_gradient(thread const float2* z, U u, int u_along, V v, int v_along, device T* du, device T* dv, int left) {
#pragma clang loop unroll(full)
  for (int side = 0; side < P::HALVES; side++) {
#pragma clang loop unroll(full)
    for (int i = 0; i < P::POINTS; i += AHEAD) {
      float first[AHEAD], gate[AHEAD];
      load_ahead<P>(first, u, u_along, i, side, left, P::GATED);
      load_ahead<P>(gate, v, v_along, i, side, left, P::GATED);
#pragma clang loop unroll(full)
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
inline void store_filter_gradient(thread const float2* z, device float* dk, device float* dk_reverse, int first, int taps,
                                             int taps_reverse) {
#pragma clang loop unroll(full)
  for (int i = 0; i < P::POINTS; i++) {
#pragma clang loop unroll(full)
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

// Strides of a (batch, channels, length) array.
struct Strides {
  size_t batch, channel, along;
  size_t of(uint b, uint c) const thread { return b * batch + c * channel; }
};

// spectrum[h] = transform of k[h] and, mirrored, of k_reverse[h]; divided by M for the way back.
template <class P, typename Filter, typename Reverse>
inline void spectrum(Filter k, Reverse k_reverse, const device float* table, device float* out, uint heads, int taps,
                     int taps_reverse, threadgroup float* shared, uint group, uint place) {
  const int me = place % P::THREADS, first = first_butterfly<P, 0>(me);
  const uint slot = place / P::THREADS, unit = group * P::ROWS + slot, head = min(unit, heads - 1);
  float2 z[P::POINTS];
  load_row<P>(z, k + size_t(head) * taps + first, 1, taps - first);
  if constexpr (P::MIRRORED) mirror<P>(z, k_reverse + size_t(head) * taps_reverse, first, taps_reverse);
  transform<P, false>(z, shared + slot * P::SHARED, (const device float2*)table, me);
  if (unit >= heads) return;
  device float2* row = (device float2*)out + size_t(head) * P::M + me;
#pragma clang loop unroll(full)
  for (int i = 0; i < P::POINTS; i++) row[i * P::THREADS] = float2(z[i].x * (1.0f / P::M), z[i].y * (1.0f / P::M));
}

// y. Rows of one head follow each other, so that they find its spectrum in the cache.
template <class P, typename U, typename V, typename Q, typename Skip, typename Mask, typename T>
inline void forward(U u, V v, Q q, const device float* filter, Skip D, Mask mask, const device float* table,
                    device T* y, uint batch, uint heads, int length, Strides us, Strides vs, Strides qs,
                    threadgroup float* shared, uint group, uint place) {
  const int me = place % P::THREADS, first = first_butterfly<P, 0>(me), left = length - first;
  const uint slot = place / P::THREADS, unit = group * P::ROWS + slot, units = batch * heads;
  const uint head = min(unit, units - 1) / batch, b = min(unit, units - 1) % batch;
  float2 z[P::POINTS];
  load_row<P>(z, u + us.of(b, head) + first * us.along, us.along, left);
  if constexpr (P::GATED) gate_row<P>(z, v + vs.of(b, head) + first * vs.along, vs.along, left);
  transform<P, !P::FOLDED>(z, shared + slot * P::SHARED, (const device float2*)table, me);
  const float skip = P::SKIPS ? D[head] * (1.0f / P::M) : 0.0f;
  multiply<P>(z, (const device float2*)filter + size_t(head) * P::M + me, skip, false);
  inverse<P>(z, shared + slot * P::SHARED, (const device float2*)table, me);
  if (P::ROWS > 1 && unit >= units) return;
  const float factor = P::MASKED ? mask[b * heads + head] : 1.0f;
  store_output<P>(z, q + qs.of(b, head) + first * qs.along, qs.along, factor,
                  y + (size_t(b) * heads + head) * length + first, left);
}

// Gradients in u, v and q, and of each head the sum over a part of the batch of conj(X) dZ, whose inverse is dk.
// Every part has rows. X is kept in `kept` while z is computed, the sum is made in its place. A thread reads only what it wrote there.
template <class P, typename G, typename U, typename V, typename Q, typename Skip, typename Mask, typename T>
inline void backward(G g, U u, V v, Q q, const device float* filter, Skip D, Mask mask, const device float* table,
                     device T* du, device T* dv, device T* dq, device float* partial, device float* kept_work,
                     uint batch, uint heads, int length, uint parts, Strides gs, Strides us, Strides vs, Strides qs,
                     threadgroup float* shared, uint group, uint place) {
  const int me = place % P::THREADS, first = first_butterfly<P, 0>(me), left = length - first;
  const uint slot = place / P::THREADS, unit = group * P::ROWS + slot, units = parts * heads;
  const uint head = min(unit, units - 1) / parts, part = min(unit, units - 1) % parts;
  const uint each = (batch + parts - 1) / parts;
  const device float2* row_filter = (const device float2*)filter + size_t(head) * P::M + me;
  const float skip = P::SKIPS ? D[head] * (1.0f / P::M) : 0.0f;
  device float2* sums = (device float2*)partial + (size_t(head) * parts + part) * P::M + me;
  device float2* kept = (device float2*)kept_work + (size_t(head) * parts + part) * P::M + me;
  shared += slot * P::SHARED;
  for (uint turn = 0; turn < each; turn++) {
    const bool live = unit < units && part * each + turn < batch;
    const uint b = min(part * each + turn, batch - 1);
    const size_t row = (size_t(b) * heads + head) * length + first;
    const U own_u = u + us.of(b, head) + first * us.along;
    const V own_v = v + vs.of(b, head) + first * vs.along;
    const G own_g = g + gs.of(b, head) + first * gs.along;
    const float factor = P::MASKED ? mask[b * heads + head] : 1.0f;
    float2 z[P::POINTS];
    load_row<P>(z, own_u, us.along, left);
    if constexpr (P::GATED) gate_row<P>(z, own_v, vs.along, left);
    transform<P, !P::FOLDED>(z, shared, (const device float2*)table, me);
    if (live) {
#pragma clang loop unroll(full)
      for (int i = 0; i < P::POINTS; i++) kept[i * P::THREADS] = z[i];
    }
    if constexpr (P::GATED_AFTER || P::CURVED) {  // the forward's output is needed again
      multiply<P>(z, row_filter, skip, false);
      inverse<P>(z, shared, (const device float2*)table, me);
      turn_back<P>(z, own_g, gs.along, q + qs.of(b, head) + first * qs.along, qs.along, factor, dq + row, left, live);
    } else {
      load_gradient<P>(z, own_g, gs.along, factor, left);
      meet<P, 0>();  // no way back was there, so that others may still read where this thread writes next
    }
    transform<P, !P::FOLDED>(z, shared, (const device float2*)table, me);
    if (live) add_terms<P, 8>(sums, kept, z, turn == 0);
    multiply<P>(z, row_filter, skip, true);
    inverse<P>(z, shared, (const device float2*)table, me);
    if (live) store_gradient<P>(z, own_u, us.along, own_v, vs.along, du + row, dv + row, left);
  }
}

// dk and dk_reverse from the sums of `backward`, added up in order. dD is dk[0].
template <class P>
inline void filter_grad(const device float* partial, const device float* table, device float* dk,
                        device float* dk_reverse, uint heads, int taps, int taps_reverse, uint parts,
                        threadgroup float* shared, uint group, uint place) {
  const int me = place % P::THREADS, first = first_butterfly<P, 0>(me);
  const uint slot = place / P::THREADS, unit = group * P::ROWS + slot, head = min(unit, heads - 1);
  const device float2* sums = (const device float2*)partial + size_t(head) * parts * P::M + me;
  float2 z[P::POINTS];
#pragma clang loop unroll(full)
  for (int i = 0; i < P::POINTS; i++) z[i] = float2(0.0f, 0.0f);
  for (uint part = 0; part < parts; part++) {
#pragma clang loop unroll(full)
    for (int i = 0; i < P::POINTS; i++) {
      const float2 more = sums[size_t(part) * P::M + i * P::THREADS];
      z[i] = float2(fma(more.x, 1.0f / P::M, z[i].x), fma(more.y, 1.0f / P::M, z[i].y));
    }
  }
  inverse<P>(z, shared + slot * P::SHARED, (const device float2*)table, me);
  if (unit >= heads) return;
  store_filter_gradient<P>(z, dk + size_t(head) * taps, dk_reverse + size_t(head) * taps_reverse, first, taps,
                           taps_reverse);
}

}  // namespace fftconv
