// Rows that are too long for a threadgroup, in three kernels.
//
// Twin of cuda/fftconv_long.cu. MLX's arrays are written once, so that every kernel writes into new memory here.
namespace fftconv {

// Three kernels: the first 2^OUTER points a thread (columns), the blocks that this leaves (rows), and columns again.
// Between them numbers are in a workspace (rows, 2^OUTER, 2^LOG_INNER).

enum ColumnStage { SIGNAL, GRADIENT, FILTER, OUTPUT, TURN, BACK, FILTER_GRADIENT };

// The way back of a column that a thread holds.
template <class P>
inline void columns_back(thread float2* z, const device float2* table, int first) {
  const float4 low = factor(table, 2 * first), high = factor(table, 2 * first + 1);
  const float2 twist = float2(high.z, high.w);
  float2 power[6] = {float2(low.x, low.y),          squared(float2(low.x, low.y)), float2(low.z, low.w),
                     squared(float2(low.z, low.w)), float2(high.x, high.y),        squared(float2(high.x, high.y))};
  power[P::bits(0) - 1] = product(power[P::bits(0) - 1], twist);
#pragma clang loop unroll(full)
  for (int i = 0; i < P::POINTS; i += 2) z[i] = product(z[i], twist);
  levels<GIVEN, true, false, P::bits(0)>(z, power);
}

// SIGNAL, GRADIENT, FILTER: from u v, g or k to the workspace `to`. OUTPUT, BACK, FILTER_GRADIENT: from the workspace
// `from` to y, to du and dv, to dk. TURN: from the convolution's values there to their gradient, and dq. All pairs of each row.
// `tails`: those of `tail` that the stage adds. P: `Columns`, or a Plan with levels below it, whose threads exchange in `shared`.
template <class P, ColumnStage STAGE, typename G, typename U, typename V, typename Q, typename Mask, typename To, typename Out,
          typename More>
inline void columns(G g, U u, V v, Q q, const device float* tails, Mask mask, const device float* table, const device float* from,
                    To to, Out out, More dv, uint batch, uint heads, uint head_dim, int length, int taps_reverse, Strides gs,
                    Strides us, Strides vs, Strides qs, threadgroup float* shared, uint group, uint lane) {
  constexpr uint GROUPS_OF_ROW = P::TILED ? P::INNER / LANES : (P::INNER + 255) / 256;
  const uint side_by_side = P::TILED ? LANES : 256, below = lane / side_by_side * P::INNER;
  const int first = below + group % GROUPS_OF_ROW * side_by_side + lane % side_by_side, left = length - first;
  const uint row = group / GROUPS_OF_ROW, head = row / batch, b = row % batch;
  const uint width = P::PAIRED ? head_dim : 1, pairs = width * width;
  const float weight = P::MASKED ? mask[b * heads + head] : 1.0f;
  const device float* edge = tails + (size_t(b) * heads + head) * TAILS;
  for (uint number = 0; number < pairs; number++) {
    const Pair<P::PAIRED> pair(head_dim, number);
    const uint one = head * width + pair.one, other = head * width + pair.other;
    const size_t own = (size_t(b) * heads * width + one) * length + first;
    const size_t other_own = (size_t(b) * heads * width + other) * length + first;
    const size_t place = (size_t(row) * pairs + number) * P::M + position<P, P::HERE - 1>(first);
    float2 z[P::POINTS];
    if constexpr (P::TILED && P::PAIRED)
      if (number > 0) meet<P, 0>();  // the last pair's numbers may still be read
    if constexpr (STAGE == SIGNAL) {
      load_row<P>(z, u + us.of(b, one) + first * us.along, us.along, left);
      if constexpr (P::GATED) gate_row<P>(z, v + vs.of(b, other) + first * vs.along, vs.along, left);
    } else if constexpr (STAGE == GRADIENT) {
      load_gradient<P>(z, g + gs.of(b, other) + first * gs.along, gs.along, weight, left);
    } else if constexpr (STAGE == FILTER) {
      load_row<P>(z, u + us.of(b, head) + first * us.along, us.along, left);
      if constexpr (P::MIRRORED) mirror<P>(z, v + size_t(head) * taps_reverse, first, taps_reverse);
    } else {
      const device float2* mine = (const device float2*)from + place;
#pragma clang loop unroll(full)
      for (int i = 0; i < P::POINTS; i++) z[i] = mine[step<P, P::HERE - 1>(i)];
      if constexpr (P::TILED) inverse<P>(z, shared, (const device float2*)table, first);
      else columns_back<P>(z, (const device float2*)table, first);
      if constexpr (P::TAILED && (STAGE == OUTPUT || STAGE == TURN)) mend<P>(z, edge, first);
      if constexpr (STAGE == OUTPUT)
        store_output<P>(z, q + qs.of(b, one) + first * qs.along, qs.along, weight, out + other_own, left, pair.one > 0);
      if constexpr (STAGE == BACK)
        store_gradient<P>(z, u + us.of(b, one) + first * us.along, us.along, v + vs.of(b, other) + first * vs.along, vs.along,
                          edge, out + own, dv + other_own, left, pair.other > 0, pair.one > 0);
      if constexpr (STAGE == FILTER_GRADIENT)
        store_filter_gradient<P>(z, tails + head * TAILS, out + size_t(head) * length, dv + size_t(head) * taps_reverse, first,
                                 length, taps_reverse);
      if constexpr (STAGE == TURN)
        turn_back<P>(z, g + gs.of(b, other) + first * gs.along, gs.along, q + qs.of(b, one) + first * qs.along, qs.along,
                     weight, out + own, left, pair.other > 0, true);
    }
    if constexpr (STAGE != OUTPUT && STAGE != BACK && STAGE != FILTER_GRADIENT) {
      if constexpr (P::TILED) transform<P, STAGE != FILTER && !P::FOLDED>(z, shared, (const device float2*)table, first);
      else levels<ROOT, false, STAGE != FILTER && !P::FOLDED, P::bits(0)>(z, nullptr);
      device float2* mine = (device float2*)to + place;
#pragma clang loop unroll(full)
      for (int i = 0; i < P::POINTS; i++) mine[step<P, P::HERE - 1>(i)] = z[i];
    }
  }
}

enum RowStage { SPECTRUM, CONVOLVE, TRANSFORM, CONVOLUTION, ADJOINT, INVERSE };

// One block of one row. SPECTRUM: its transform, divided by the whole M. CONVOLVE: transform, product, inverse.
// TRANSFORM: the first of these alone; CONVOLUTION: the others, from `kept`. ADJOINT, for all rows of a head here: the
// same with the conjugate product, and the sum of conj(kept) dZ. INVERSE: of the sums.
template <class P, RowStage STAGE, typename Skip, typename Sums>
inline void rows(const device float* filter, Skip D, const device float* table, const device float* from,
                 const device float* kept_work, device float* to, Sums sums_work, uint batch,
                 threadgroup float* shared, uint group, uint lane) {
  constexpr uint BLOCKS_OF_ROW = 1 << P::OUTER;
  constexpr float SCALE = 1.0f / (P::M << P::OUTER);
  const int me = lane, first = first_butterfly<P, 0>(me), block = group % BLOCKS_OF_ROW;
  const uint unit = group / BLOCKS_OF_ROW, rows = STAGE == ADJOINT ? batch : 1;
  const uint head = STAGE == ADJOINT ? unit : unit / batch;
  const device float2* own_filter = (const device float2*)filter + (size_t(head) * BLOCKS_OF_ROW + block) * P::M + me;
  const float skip = P::SKIPS ? D[head] * SCALE : 0.0f;
  for (uint turn = 0; turn < rows; turn++) {
    const size_t at = ((size_t(unit) * rows + turn) * BLOCKS_OF_ROW + block) * P::M;
    const device float2* given = (const device float2*)from + at;
    device float2* place = (device float2*)to + at;
    float2 z[P::POINTS];
    if constexpr (STAGE == CONVOLUTION || STAGE == INVERSE) {
#pragma clang loop unroll(full)
      for (int i = 0; i < P::POINTS; i++) {
        z[i] = given[i * P::THREADS + me];
        if (STAGE == INVERSE) z[i] = float2(z[i].x * SCALE, z[i].y * SCALE);
      }
    } else {
#pragma clang loop unroll(full)
      for (int i = 0; i < P::POINTS; i++) z[i] = given[first + step<P, 0>(i)];
      transform<P, false>(z, shared, (const device float2*)table, me, block);
    }
    if constexpr (STAGE == SPECTRUM || STAGE == TRANSFORM) {
#pragma clang loop unroll(full)
      for (int i = 0; i < P::POINTS; i++)
        place[i * P::THREADS + me] = STAGE == SPECTRUM ? float2(z[i].x * SCALE, z[i].y * SCALE) : z[i];
    } else {
      if constexpr (STAGE == ADJOINT)
        add_terms<P, 8>((device float2*)sums_work + (size_t(head) * BLOCKS_OF_ROW + block) * P::M + me,
                        (const device float2*)kept_work + at + me, z, turn == 0);
      if constexpr (STAGE != INVERSE) multiply<P>(z, own_filter, skip, STAGE == ADJOINT);
      inverse<P>(z, shared, (const device float2*)table, me);
#pragma clang loop unroll(full)
      for (int i = 0; i < P::POINTS; i++) place[first + step<P, 0>(i)] = z[i];
    }
  }
}

}  // namespace fftconv
