// Rows that are too long for a block, in three kernels.
//
// Twin of metal/fftconv_long.metal.
namespace fftconv {

// Three kernels: the first 2^OUTER points a thread (columns), the blocks that this leaves (rows), and columns again.
// Between them numbers are in a workspace (rows, 2^OUTER, 2^LOG_INNER), for some rows at a time.

enum ColumnStage { SIGNAL, GRADIENT, FILTER, OUTPUT, TURN, BACK, FILTER_GRADIENT };

// SIGNAL, GRADIENT, FILTER: from u v, g or k to the workspace. OUTPUT, BACK, FILTER_GRADIENT: from there to y, to du and
// dv, to dk. TURN: from the convolution's values there to their gradient, and dq. Rows are those from `row` on, with all
// pairs of each. `tails`: those of `tail` that the stage adds.
template <class P, ColumnStage STAGE, typename T, typename Y>
__device__ inline void columns(const T* g, const T* u, const T* v, const T* q, const float* tails, const float* mask,
                               const float* table, float* work, Y* out, Y* dv, unsigned batch, unsigned heads,
                               unsigned head_dim, unsigned row, int length, int taps_reverse, Strides gs, Strides us,
                               Strides vs, Strides qs) {
  constexpr unsigned BLOCKS_OF_ROW = (P::INNER + 255) / 256;
  const int first = blockIdx.x % BLOCKS_OF_ROW * 256 + threadIdx.x, left = length - first;
  const unsigned local = blockIdx.x / BLOCKS_OF_ROW, head = (row + local) / batch, b = (row + local) % batch;
  const unsigned width = P::PAIRED ? head_dim : 1, pairs = width * width;
  const float factor = P::MASKED ? mask[b * heads + head] : 1.0f;
  const float* edge = tails + (size_t(b) * heads + head) * TAILS;
  for (unsigned number = 0; number < pairs; number++) {
    const Pair<P::PAIRED> pair(head_dim, number);
    const unsigned one = head * width + pair.one, other = head * width + pair.other;
    const size_t own = (size_t(b) * heads * width + one) * length + first;
    const size_t other_own = (size_t(b) * heads * width + other) * length + first;
    float2* place = (float2*)work + (size_t(local) * pairs + number) * P::M + first;
    float2 z[P::POINTS];
    if constexpr (STAGE == SIGNAL) {
      load_row<P>(z, u + us.of(b, one) + first, left);
      if (P::GATED) gate_row<P>(z, v + vs.of(b, other) + first, left);
    } else if constexpr (STAGE == GRADIENT) {
      load_gradient<P>(z, g + gs.of(b, other) + first, factor, left);
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
      if (P::TAILED && (STAGE == OUTPUT || STAGE == TURN)) mend<P>(z, edge, first);
      if constexpr (STAGE == OUTPUT)
        store_output<P>(z, q + qs.of(b, one) + first, factor, out + other_own, left, pair.one > 0);
      if constexpr (STAGE == BACK)
        store_gradient<P>(z, u + us.of(b, one) + first, v + vs.of(b, other) + first, edge, out + own, dv + other_own, left,
                          pair.other > 0, pair.one > 0);
      if constexpr (STAGE == FILTER_GRADIENT)
        store_filter_gradient<P>(z, tails + head * TAILS, out + size_t(head) * length, dv + size_t(head) * taps_reverse,
                                 first, length, taps_reverse);
      if constexpr (STAGE == TURN)
        turn_back<P>(z, g + gs.of(b, other) + first, q + qs.of(b, one) + first, factor, out + own, left, pair.other > 0, true);
      else continue;
    }
    levels<ROOT, false, STAGE != FILTER && !P::FOLDED, P::bits(0)>(z, nullptr);
#pragma unroll
    for (int i = 0; i < P::POINTS; i++) place[i * P::INNER] = z[i];
  }
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
