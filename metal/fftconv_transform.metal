// The transform of the long convolution: a row of M complex points, by the threads that share it.
//
// Twin of cuda/fftconv_transform.cu: the same names, the same algorithm.
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

// What a call has: bits of OPTIONS. FOLD: rows are longer than M. RAGGED: they may end before M (FOLD: before 2 M). TAIL: the
// convolution is up to TAILS numbers longer than 2 M. PAIRS: heads of several channels, see `Pair`.
constant constexpr uint GATE_BEFORE = 1, GATE_AFTER = 2, SKIP = 4, MASK = 8, GELU = 16, REVERSE = 32, FOLD = 64, RAGGED = 128;
constant constexpr uint TAIL = 256, PAIRS = 512;
constant constexpr int TAILS = 8;

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

template <uint OPTIONS, int POINTS = 1>
struct Options {
  static constant constexpr bool GATED = OPTIONS & GATE_BEFORE, GATED_AFTER = OPTIONS & GATE_AFTER, SKIPS = OPTIONS & SKIP;
  static constant constexpr bool MASKED = OPTIONS & MASK, CURVED = OPTIONS & GELU, MIRRORED = OPTIONS & REVERSE;
  static constant constexpr bool FOLDED = OPTIONS & FOLD, CUT = OPTIONS & RAGGED, TAILED = OPTIONS & TAIL;
  static constant constexpr bool PAIRED = OPTIONS & PAIRS;
  static constant constexpr int HALVES = FOLDED ? 2 : 1;
  // Numbers that a thread loads before it stores any: a load would wait behind a store that may be to its place. Fewer where
  // registers are short: many points, ends to be watched, a gelu, sums to be read.
  static constant constexpr bool MANY = POINTS > 16;
  static constant constexpr int AHEAD = CURVED ? (MANY ? 2 : 4) : PAIRED ? 4 : CUT ? (MANY ? 4 : 8) : 16;
};

// How a transform of M = 2^LOG_M points is shared out. PASSES passes of nearly equal depth, the deeper ones first.
// OUTER: levels of a longer transform above it, see `Columns`. LOG_INNER: levels below it, which another kernel does as one more
// pass; M counts them. Then a threadgroup has 32 neighbouring columns, 8 simdgroups share them, and M / POINTS threads, of
// many threadgroups, have a row.
template <int LOG_M_, int LOG_POINTS_, int ROWS_, bool SPLIT_, uint OPTIONS = 0, int OUTER_ = 0, int LOG_INNER_ = 0>
struct Plan : Options<OPTIONS, 1 << LOG_POINTS_> {
  static constant constexpr int LOG_M = LOG_M_, LOG_POINTS = LOG_POINTS_, ROWS = ROWS_, OUTER = OUTER_;  // ROWS: of a block
  static constant constexpr bool SPLIT = SPLIT_;  // exchange real and imaginary parts one after the other, in half the memory
  static constant constexpr int M = 1 << LOG_M, POINTS = 1 << LOG_POINTS, THREADS = M / POINTS;
  static constant constexpr int LOG_INNER = LOG_INNER_, INNER = 1 << LOG_INNER;
  static constant constexpr bool TILED = LOG_INNER > 0, PADDED = M < 8192;
  static constant constexpr int PASSES = TILED ? 3 : (LOG_M + LOG_POINTS - 1) / LOG_POINTS, HERE = TILED ? 2 : PASSES;
  static constant constexpr int LANES_OF_ROW = TILED || THREADS < int(LANES) ? THREADS : int(LANES);
  static constant constexpr int SHARED = (PADDED ? M + M / 16 : M) * (SPLIT ? 1 : 2);  // floats of a row

  static constexpr int bits(int pass) {
    if (TILED) return pass == HERE ? LOG_INNER : (LOG_M - LOG_INNER + 1 - pass) / HERE;
    return LOG_M / PASSES + (pass < LOG_M % PASSES);
  }
  // levels above a pass
  static constexpr int before(int pass) {
    int levels = 0;
    for (int p = 0; p < pass; p++) levels += bits(p);
    return levels;
  }
  // log2 of the distance of a pass's points
  static constexpr int distance(int pass) { return LOG_M - before(pass + 1); }
  // Factors in the table: a root for each block of a pass, but for the very first one; a power for each position of a
  // pass, pass 0 first; the twist of pass 0.
  static constexpr int roots(int pass) {
    int factors = 0;
    for (int p = OUTER ? 0 : 1; p < pass; p++) factors += 1 << (OUTER + before(p));
    return factors;
  }
  static constexpr int powers(int pass) {
    int factors = roots(PASSES);
    for (int p = 0; p < pass; p++) factors += 1 << distance(p);
    return factors;
  }
  static constexpr int twist() { return powers(PASSES - 1); }
};

// The outermost levels of a transform that is too long for a block: 2^OUTER points, 2^LOG_INNER apart, in a thread.
template <int OUTER, int LOG_INNER, uint OPTIONS>
struct Columns : Options<OPTIONS, 1 << OUTER> {
  static constant constexpr int INNER = 1 << LOG_INNER, POINTS = 1 << OUTER, M = POINTS << LOG_INNER, LANES_OF_ROW = 0, HERE = 1;
  static constant constexpr bool TILED = false;

  static constexpr int bits(int) { return OUTER; }
  static constexpr int distance(int) { return LOG_INNER; }
};

// Every 16 numbers one is left free, which spreads the strides of the passes over the banks; unless that were more than the
// 32 KiB that there are. Of columns, 32 neighbours lie side by side.
template <class P>
constexpr int padded(int position) {
  if (P::TILED) return (position >> P::LOG_INNER) * int(LANES) + position % int(LANES);
  return P::PADDED ? position + (position >> 4) : position;
}

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
  constexpr int BITS = P::bits(PASS), DISTANCE = P::distance(PASS);
  return ((butterfly >> DISTANCE) << (DISTANCE + BITS)) + (butterfly & ((1 << DISTANCE) - 1));
}

// Position of register i, as a distance from register 0's.
template <class P, int PASS>
constexpr int step(int i) {
  constexpr int BITS = P::bits(PASS), DISTANCE = P::distance(PASS);
  return position<P, PASS>((i >> BITS) * P::LANES_OF_ROW) + ((i & ((1 << BITS) - 1)) << DISTANCE);
}

// Waits for the threads that have numbers of one block of the pass, at least.
template <class P, int PASS>
inline void meet() {
  constexpr bool TOGETHER = P::THREADS <= int(LANES) || P::POINTS * int(LANES) >> (P::LOG_M - P::before(PASS));
  if (TOGETHER) simdgroup_barrier(mem_flags::mem_threadgroup);
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
      constexpr int DISTANCE = P::distance(PASS), ABOVE = P::before(PASS), ROOTS = P::roots(PASS);
      float2 power[BITS];
      const int own = (first_butterfly<P, PASS>(me) >> DISTANCE) + (group * P::LANES_OF_ROW >> DISTANCE) + (block << ABOVE);
      raise<BITS>(factor(table, ROOTS + own), power);
      levels<GIVEN, false, false, BITS>(z + (group << BITS), power);
    }
  }
  if constexpr (PASS + 1 < P::HERE) {
    exchange<P, PASS, PASS + 1>(z, shared, me);
    transform<P, REAL, PASS + 1>(z, shared, table, me, block);
  }
}

// The way back, M times too large; the twist's factor of the position in its butterfly is left to `real_part`.
template <class P, int PASS = P::HERE - 1>
inline void inverse(thread float2* z, threadgroup float* shared, const device float2* table, int me) {
  constexpr int BITS = P::bits(PASS);
#pragma clang loop unroll(full)
  for (int group = 0; group < P::POINTS >> BITS; group++) {
    thread float2* own = z + (group << BITS);
    if constexpr (PASS == P::PASSES - 1) {
      levels<FIRST, true, false, BITS>(own, nullptr);
    } else {
      constexpr int WITHIN = (1 << P::distance(PASS)) - 1, POWERS = P::powers(PASS), TWIST = P::twist();
      const int offset = (first_butterfly<P, PASS>(me) & WITHIN) + (group * P::LANES_OF_ROW & WITHIN);
      float2 power[BITS];
      raise<BITS>(factor(table, POWERS + offset), power);
      if constexpr (PASS == 0 && P::OUTER == 0) {
        const float4 both = factor(table, TWIST + offset);
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
  constexpr int BITS = P::bits(0);
  const float2 c = unit((i & ((1 << BITS) - 1)) << (6 - BITS));
  return fma(z.x, c.x, z.y * c.y);
}

template <class P>
inline float imaginary_part(float2 z, int i) {
  constexpr int BITS = P::bits(0);
  const float2 c = unit((i & ((1 << BITS) - 1)) << (6 - BITS));
  return fma(z.y, c.x, -z.x * c.y);
}

}  // namespace fftconv
