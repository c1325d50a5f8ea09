// Long convolution by FFT: y = q * mask * gelu(k * (u v) + D (u v)), its gradients, and the filters' spectra.
//
// Twin of metal/fftconv.metal: the same names, the same algorithm.
//
// fftconv_transform explains the algorithm.
#include "fftconv_transform.cu"
#include "fftconv_rows.cu"
#include "fftconv_tail.cu"

namespace fftconv {

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

// y. Rows of one head follow each other, so that they find its spectrum in the cache; the pairs of one output, which are added
// up there, are done one after the other.
template <class P, typename T, typename Y>
__device__ inline void forward(const T* u, const T* v, const T* q, const float* filter, const float* tails, const float* D,
                               const float* mask, const float* table, Y* y, float* shared, unsigned batch, unsigned heads,
                               unsigned head_dim, int length, Strides us, Strides vs, Strides qs) {
  const int me = threadIdx.x % P::THREADS, first = first_butterfly<P, 0>(me);
  const unsigned width = P::PAIRED ? head_dim : 1, units = batch * heads * width;
  const unsigned slot = threadIdx.x / P::THREADS, unit = blockIdx.x * P::ROWS + slot, at = min(unit, units - 1);
  Row row{at / (batch * width), at / width % batch, at / (batch * width) * width + at % width, length};
  const float skip = P::SKIPS ? D[row.head] * (1.0f / P::M) : 0.0f;
  shared += slot * P::SHARED;
  row.put<P>(shared, me);
  for (unsigned one = 0; one < width; one++) {
    float2 z[P::POINTS];
    load_row<P>(z, u + us.of(row.b, row.head * width + one) + first, row.length - first);
    if (P::GATED) gate_row<P>(z, v + vs.of(row.b, row.other) + first, row.length - first);
    transform<P, !P::FOLDED>(z, shared, (const float4*)table, me);
    row.get<P>(shared);
    multiply<P>(z, (const float2*)filter + size_t(row.head) * P::M + me, skip, false);
    inverse<P>(z, shared, (const float4*)table, me);
    row.get<P>(shared);
    if (P::ROWS > 1 && unit >= units) continue;
    if (P::TAILED) mend<P>(z, tails + (size_t(row.b) * heads + row.head) * TAILS, first);
    const float factor = P::MASKED ? mask[row.b * heads + row.head] : 1.0f;
    store_output<P>(z, q + qs.of(row.b, row.head * width + one) + first, factor,
                    y + (size_t(row.b) * heads * width + row.other) * length + first, row.length - first, one > 0);
  }
}

// Gradients in u, v and q, and of each head the sum over a part of the batch (and all pairs) of conj(X) dZ, whose inverse is dk.
// Every part has rows. X is kept while z is computed, in shared memory (KEEP > 0) or in `kept`; the sum is made in shared memory (KEEP > 1) or
// in its place. A thread reads only what it wrote there.
template <class P, int KEEP, typename T, typename Y>
__device__ inline void backward(const T* g, const T* u, const T* v, const T* q, const float* filter, const float* tails,
                                const float* ends, const float* D, const float* mask, const float* table, Y* du, Y* dv,
                                Y* dq, float* partial, float* kept_work, float* shared, unsigned batch, unsigned heads,
                                unsigned head_dim, int length, unsigned parts, Strides gs, Strides us, Strides vs,
                                Strides qs) {
  const int me = threadIdx.x % P::THREADS, first = first_butterfly<P, 0>(me);
  const unsigned slot = threadIdx.x / P::THREADS, unit = blockIdx.x * P::ROWS + slot, units = parts * heads;
  const unsigned place = min(unit, units - 1), each = (batch + parts - 1) / parts, start = place % parts * each;
  const unsigned width = P::PAIRED ? head_dim : 1, pairs = width * width;
  Row row{place / parts, start, unit < units ? min(start + each, batch) : 0, length};
  const float skip = P::SKIPS ? D[row.head] * (1.0f / P::M) : 0.0f;
  float2* out = (float2*)partial + size_t(place) * P::M + me;
  float2* spare = (float2*)(shared + P::ROWS * P::SHARED) + slot * P::M + me;
  float2* kept = KEEP > 0 ? spare : (float2*)kept_work + size_t(place) * P::M + me;
  float2* sums = KEEP > 1 ? spare + P::ROWS * P::M : out;
  shared += slot * P::SHARED;
  row.put<P>(shared, me);
  for (unsigned turn = 0; turn < each * pairs; turn++) {
    const Pair<P::PAIRED> pair(head_dim, turn);
    const auto live = [&] { return row.b + turn / pairs < row.other; };
    const auto b = [&] { return min(row.b + turn / pairs, batch - 1); };
    const auto one = [&] { return row.head * width + pair.one; };
    const auto other = [&] { return row.head * width + pair.other; };
    const auto written = [&](unsigned channel) { return (size_t(b()) * heads * width + channel) * length + first; };
    const auto edge = [&] { return (size_t(b()) * heads + row.head) * TAILS; };
    float2 z[P::POINTS];
    load_row<P>(z, u + us.of(b(), one()) + first, row.length - first);
    if (P::GATED) gate_row<P>(z, v + vs.of(b(), other()) + first, row.length - first);
    transform<P, !P::FOLDED>(z, shared, (const float4*)table, me);
    row.get<P>(shared);
    if (KEEP > 0 || live()) {
#pragma unroll
      for (int i = 0; i < P::POINTS; i++) kept[i * P::THREADS] = z[i];
    }
    if (P::GATED_AFTER || P::CURVED) {  // the forward's output is needed again
      multiply<P>(z, (const float2*)filter + size_t(row.head) * P::M + me, skip, false);
      inverse<P>(z, shared, (const float4*)table, me);
      row.get<P>(shared);
      const float factor = P::MASKED ? mask[b() * heads + row.head] : 1.0f;
      if (P::TAILED) mend<P>(z, tails + edge(), first);
      turn_back<P>(z, g + gs.of(b(), other()) + first, q + qs.of(b(), one()) + first, factor, dq + written(one()),
                   row.length - first, pair.other > 0, live());
    } else {
      const float factor = P::MASKED ? mask[b() * heads + row.head] : 1.0f;
      load_gradient<P>(z, g + gs.of(b(), other()) + first, factor, row.length - first);
      meet<P, 0>();  // no way back was there, so that others may still read where this thread writes next
    }
    transform<P, !P::FOLDED>(z, shared, (const float4*)table, me);
    row.get<P>(shared);
    if (live()) add_terms<P, (KEEP > 1 ? 2 : P::CUT || P::CURVED ? 4 : 8)>(sums, kept, z, turn == 0);
    multiply<P>(z, (const float2*)filter + size_t(row.head) * P::M + me, skip, true);
    inverse<P>(z, shared, (const float4*)table, me);
    row.get<P>(shared);
    if (live())
      store_gradient<P>(z, u + us.of(b(), one()) + first, v + vs.of(b(), other()) + first, ends + edge(), du + written(one()),
                        dv + written(other()), row.length - first, pair.other > 0, pair.one > 0);
  }
  if constexpr (KEEP == 2) {
    if (unit >= units) return;
#pragma unroll
    for (int i = 0; i < P::POINTS; i++) out[i * P::THREADS] = sums[i * P::THREADS];
  }
}

// dk and dk_reverse from the sums of `backward`, added up in order. dD is dk[0].
template <class P>
__device__ inline void filter_grad(const float* partial, const float* ends, const float* table, float* dk, float* dk_reverse,
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
  store_filter_gradient<P>(z, ends + head * TAILS, dk + size_t(head) * taps, dk_reverse + size_t(head) * taps_reverse, first, taps,
                           taps_reverse);
}

}  // namespace fftconv

#include "fftconv_long.cu"

// The numbers after the type are those of fftconv::Plan, and the blocks that a multiprocessor is to hold at once.
#define FFTCONV_PLAN int LOG_M, int LOG_POINTS, int ROWS, unsigned OPTIONS, int BLOCKS
#define FFTCONV_WRITTEN typename fftconv::Written<T, (OPTIONS & fftconv::PAIRS) != 0>::Type
#define FFTCONV_KERNEL __global__ void __launch_bounds__((ROWS << LOG_M) >> LOG_POINTS, BLOCKS)

template <FFTCONV_PLAN>
FFTCONV_KERNEL fftconv_spectrum(const float* k, const float* k_reverse, const float* table, float* out, unsigned heads,
                                unsigned taps, unsigned taps_reverse) {
  extern __shared__ float shared_memory[];
  using P = fftconv::Plan<LOG_M, LOG_POINTS, ROWS, OPTIONS | fftconv::FOLD | fftconv::RAGGED>;
  fftconv::spectrum<P>(k, k_reverse, table, out, shared_memory, heads, taps, taps_reverse);
}

template <typename T, FFTCONV_PLAN>
FFTCONV_KERNEL fftconv_forward(const T* u, const T* v, const T* q, const float* filter, const float* tails, const float* D,
                               const float* mask, const float* table, FFTCONV_WRITTEN* y, unsigned batch,
                               unsigned heads, unsigned head_dim, unsigned length, size_t u_batch, size_t u_channel, size_t v_batch, size_t v_channel,
                               size_t q_batch, size_t q_channel) {
  extern __shared__ float shared_memory[];
  using P = fftconv::Plan<LOG_M, LOG_POINTS, ROWS, OPTIONS>;
  fftconv::forward<P>(u, v, q, filter, tails, D, mask, table, y, shared_memory, batch, heads, head_dim, length,
                      {u_batch, u_channel}, {v_batch, v_channel}, {q_batch, q_channel});
}

template <typename T, unsigned OPTIONS, bool BACK>
__global__ void __launch_bounds__(256) fftconv_tail(
    const T* g, const T* u, const T* v, const T* q, const float* k, const float* D, const float* mask, float* tails,
    float* ends, float* tap_ends, unsigned batch, unsigned heads, unsigned length, unsigned taps, unsigned points,
    size_t g_batch, size_t g_channel, size_t u_batch, size_t u_channel, size_t v_batch, size_t v_channel, size_t q_batch,
    size_t q_channel) {
  extern __shared__ float shared_memory[];
  fftconv::tail<fftconv::Options<OPTIONS>, BACK>(g, u, v, q, k, D, mask, tails, ends, tap_ends, shared_memory, batch, heads,
                                                 length, taps, points, {g_batch, g_channel}, {u_batch, u_channel},
                                                 {v_batch, v_channel}, {q_batch, q_channel});
}

// KEEP: see fftconv::backward.
template <typename T, FFTCONV_PLAN, int KEEP>
FFTCONV_KERNEL fftconv_backward(const T* g, const T* u, const T* v, const T* q, const float* filter, const float* tails,
                                const float* ends, const float* D, const float* mask, const float* table,
                                FFTCONV_WRITTEN* du, FFTCONV_WRITTEN* dv, FFTCONV_WRITTEN* dq, float* partial, float* kept,
                                unsigned batch, unsigned heads, unsigned head_dim, unsigned length, unsigned parts, size_t g_batch, size_t g_channel, size_t u_batch, size_t u_channel, size_t v_batch,
                                size_t v_channel, size_t q_batch, size_t q_channel) {
  extern __shared__ float shared_memory[];
  using P = fftconv::Plan<LOG_M, LOG_POINTS, ROWS, OPTIONS>;
  fftconv::backward<P, KEEP>(g, u, v, q, filter, tails, ends, D, mask, table, du, dv, dq, partial, kept, shared_memory,
                             batch, heads, head_dim, length, parts, {g_batch, g_channel}, {u_batch, u_channel},
                             {v_batch, v_channel}, {q_batch, q_channel});
}

template <FFTCONV_PLAN>
FFTCONV_KERNEL fftconv_filter_grad(const float* partial, const float* ends, const float* table, float* dk, float* dk_reverse,
                                   unsigned heads, unsigned taps, unsigned taps_reverse, unsigned parts) {
  extern __shared__ float shared_memory[];
  using P = fftconv::Plan<LOG_M, LOG_POINTS, ROWS, OPTIONS | fftconv::FOLD | fftconv::RAGGED>;
  fftconv::filter_grad<P>(partial, ends, table, dk, dk_reverse, shared_memory, heads, taps, taps_reverse, parts);
}

template <typename T, int OUTER, int LOG_INNER, unsigned OPTIONS, fftconv::ColumnStage STAGE>
__global__ void __launch_bounds__(256) fftconv_columns(
    const T* g, const T* u, const T* v, const T* q, const float* tails, const float* mask, const float* table,
    float* work, FFTCONV_WRITTEN* out, FFTCONV_WRITTEN* dv, unsigned batch, unsigned heads, unsigned head_dim, unsigned row,
    unsigned length, unsigned taps_reverse, size_t g_batch, size_t g_channel, size_t u_batch, size_t u_channel, size_t v_batch, size_t v_channel, size_t q_batch,
    size_t q_channel) {
  using P = fftconv::Columns<OUTER, LOG_INNER, OPTIONS>;
  fftconv::columns<P, STAGE>(g, u, v, q, tails, mask, table, work, out, dv, batch, heads, head_dim, row, length, taps_reverse,
                             {g_batch, g_channel}, {u_batch, u_channel}, {v_batch, v_channel}, {q_batch, q_channel});
}

template <FFTCONV_PLAN, int OUTER, fftconv::RowStage STAGE>
FFTCONV_KERNEL fftconv_rows(const float* filter, const float* D, const float* table, float* work, float* kept,
                            float* sums, unsigned batch, unsigned row) {
  extern __shared__ float shared_memory[];
  using P = fftconv::Plan<LOG_M, LOG_POINTS, ROWS, OPTIONS, OUTER>;
  fftconv::rows<P, STAGE>(filter, D, table, work, kept, sums, shared_memory, batch, row);
}
