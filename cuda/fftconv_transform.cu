// The transform of the long convolution: a row of M complex points, by the threads that share it.
//
// Twin of metal/fftconv_transform.metal: the same names, the same algorithm.
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

// What a call has: bits of OPTIONS. FOLD: rows are longer than M. RAGGED: they may end before M (FOLD: before 2 M). TAIL: the
// convolution is up to TAILS numbers longer than 2 M. PAIRS: heads of several channels, see `Pair`.
constexpr unsigned GATE_BEFORE = 1, GATE_AFTER = 2, SKIP = 4, MASK = 8, GELU = 16, REVERSE = 32, FOLD = 64, RAGGED = 128;
constexpr unsigned TAIL = 256, PAIRS = 512;
constexpr int TAILS = 8;

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

template <unsigned OPTIONS, int POINTS = 1>
struct Options {
  static constexpr bool GATED = OPTIONS & GATE_BEFORE, GATED_AFTER = OPTIONS & GATE_AFTER, SKIPS = OPTIONS & SKIP;
  static constexpr bool MASKED = OPTIONS & MASK, CURVED = OPTIONS & GELU, MIRRORED = OPTIONS & REVERSE;
  static constexpr bool FOLDED = OPTIONS & FOLD, CUT = OPTIONS & RAGGED, TAILED = OPTIONS & TAIL, PAIRED = OPTIONS & PAIRS;
  static constexpr int HALVES = FOLDED ? 2 : 1;
  // Numbers that a thread loads before it stores any: a load would wait behind a store that may be to its place. Fewer where
  // registers are short: many points, ends to be watched, a gelu, sums to be read.
  static constexpr bool MANY = POINTS > 16;
  static constexpr int AHEAD = CURVED ? (MANY || PAIRED ? 2 : 4) : PAIRED ? 4 : CUT ? (MANY ? 4 : 8) : 16;
  static constexpr bool TIGHT = CUT || CURVED || PAIRED;  // see `Row`
};

// How a transform of M = 2^LOG_M points is shared out. PASSES passes of nearly equal depth, the deeper ones first.
// OUTER: levels of a longer transform above it, see `Columns`.
template <int LOG_M_, int LOG_POINTS_, int ROWS_, unsigned OPTIONS = 0, int OUTER_ = 0>
struct Plan : Options<OPTIONS, 1 << LOG_POINTS_> {
  static constexpr int LOG_M = LOG_M_, LOG_POINTS = LOG_POINTS_, ROWS = ROWS_, OUTER = OUTER_;  // ROWS: of a block
  static constexpr int M = 1 << LOG_M, POINTS = 1 << LOG_POINTS, THREADS = M / POINTS;
  static constexpr int PASSES = (LOG_M + LOG_POINTS - 1) / LOG_POINTS;
  static constexpr int LANES_OF_ROW = THREADS < int(LANES) ? THREADS : int(LANES);
  static constexpr int SHARED = (M + M / 16) * 2;  // floats of a row

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
struct Columns : Options<OPTIONS, 1 << OUTER> {
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
  float2* pairs = (float2*)shared;
#pragma unroll
  for (int i = 0; i < P::POINTS; i++) pairs[from + padded(step<P, FROM>(i))] = z[i];
  meet<P, EARLIER>();
#pragma unroll
  for (int i = 0; i < P::POINTS; i++) z[i] = pairs[to + padded(step<P, TO>(i))];
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

}  // namespace fftconv
