// Long convolution by FFT: y = q * mask * gelu(k * (u v) + D (u v)), its gradients, and the filters' spectra.
//
// Twin of cuda/fftconv.cu: the same names, the same algorithm. Every function works for one thread of a threadgroup; rows of
// inputs may have any strides, `along` is the one between their numbers. Inputs are template types because MLX keeps arrays
// of fewer than 8 elements in the constant address space.
//
// fftconv_transform explains the algorithm.
#include "fftconv_transform.metal"
#include "fftconv_rows.metal"
#include "fftconv_tail.metal"

namespace fftconv {

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

// y. Rows of one head follow each other, so that they find its spectrum in the cache; the pairs of one output, which are added
// up there, are done one after the other.
template <class P, typename U, typename V, typename Q, typename Skip, typename Mask, typename Y>
inline void forward(U u, V v, Q q, const device float* filter, const device float* tails, Skip D, Mask mask, const device float* table,
                    device Y* y, uint batch, uint heads, uint head_dim, int length, Strides us, Strides vs, Strides qs,
                    threadgroup float* shared, uint group, uint place) {
  const int me = place % P::THREADS, first = first_butterfly<P, 0>(me), left = length - first;
  const uint width = P::PAIRED ? head_dim : 1, units = batch * heads * width;
  const uint slot = place / P::THREADS, unit = group * P::ROWS + slot, at = min(unit, units - 1);
  const uint head = at / (batch * width), b = at / width % batch, channel = head * width + at % width;
  const float skip = P::SKIPS ? D[head] * (1.0f / P::M) : 0.0f;
  for (uint one = 0; one < width; one++) {
    float2 z[P::POINTS];
    load_row<P>(z, u + us.of(b, head * width + one) + first * us.along, us.along, left);
    if constexpr (P::GATED) gate_row<P>(z, v + vs.of(b, channel) + first * vs.along, vs.along, left);
    transform<P, !P::FOLDED>(z, shared + slot * P::SHARED, (const device float2*)table, me);
    multiply<P>(z, (const device float2*)filter + size_t(head) * P::M + me, skip, false);
    inverse<P>(z, shared + slot * P::SHARED, (const device float2*)table, me);
    if (P::ROWS > 1 && unit >= units) continue;
    if (P::TAILED) mend<P>(z, tails + (size_t(b) * heads + head) * TAILS, first);
    const float factor = P::MASKED ? mask[b * heads + head] : 1.0f;
    store_output<P>(z, q + qs.of(b, head * width + one) + first * qs.along, qs.along, factor,
                    y + (size_t(b) * heads * width + channel) * length + first, left, one > 0);
  }
}

// Gradients in u, v and q, and of each head the sum over a part of the batch (and all pairs) of conj(X) dZ, whose inverse is dk.
// Every part has rows. X is kept in `kept` while z is computed, the sum is made in its place. A thread reads only what it wrote there.
template <class P, typename G, typename U, typename V, typename Q, typename Skip, typename Mask, typename Y>
inline void backward(G g, U u, V v, Q q, const device float* filter, const device float* tails, const device float* ends, Skip D,
                     Mask mask, const device float* table, device Y* du, device Y* dv, device Y* dq, device float* partial,
                     device float* kept_work, uint batch, uint heads, uint head_dim, int length, uint parts, Strides gs,
                     Strides us, Strides vs, Strides qs, threadgroup float* shared, uint group, uint place) {
  const int me = place % P::THREADS, first = first_butterfly<P, 0>(me), left = length - first;
  const uint slot = place / P::THREADS, unit = group * P::ROWS + slot, units = parts * heads;
  const uint head = min(unit, units - 1) / parts, part = min(unit, units - 1) % parts;
  const uint width = P::PAIRED ? head_dim : 1, pairs = width * width, each = (batch + parts - 1) / parts;
  const device float2* row_filter = (const device float2*)filter + size_t(head) * P::M + me;
  const float skip = P::SKIPS ? D[head] * (1.0f / P::M) : 0.0f;
  device float2* sums = (device float2*)partial + (size_t(head) * parts + part) * P::M + me;
  device float2* kept = (device float2*)kept_work + (size_t(head) * parts + part) * P::M + me;
  shared += slot * P::SHARED;
  for (uint turn = 0; turn < each * pairs; turn++) {
    const bool live = unit < units && part * each + turn / pairs < batch;
    const uint b = min(part * each + turn / pairs, batch - 1);
    const Pair<P::PAIRED> pair(head_dim, turn);
    const uint one = head * width + pair.one, other = head * width + pair.other;
    const size_t row = (size_t(b) * heads * width + one) * length + first, edge = (size_t(b) * heads + head) * TAILS;
    const size_t other_row = (size_t(b) * heads * width + other) * length + first;
    const U own_u = u + us.of(b, one) + first * us.along;
    const V own_v = v + vs.of(b, other) + first * vs.along;
    const G own_g = g + gs.of(b, other) + first * gs.along;
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
      const float factor = P::MASKED ? mask[b * heads + head] : 1.0f;
      if (P::TAILED) mend<P>(z, tails + edge, first);
      turn_back<P>(z, own_g, gs.along, q + qs.of(b, one) + first * qs.along, qs.along, factor, dq + row, left, pair.other > 0,
                   live);
    } else {
      const float factor = P::MASKED ? mask[b * heads + head] : 1.0f;
      load_gradient<P>(z, own_g, gs.along, factor, left);
      meet<P, 0>();  // no way back was there, so that others may still read where this thread writes next
    }
    transform<P, !P::FOLDED>(z, shared, (const device float2*)table, me);
    if (live) add_terms<P, 8>(sums, kept, z, turn == 0);
    multiply<P>(z, row_filter, skip, true);
    inverse<P>(z, shared, (const device float2*)table, me);
    if (live)
      store_gradient<P>(z, own_u, us.along, own_v, vs.along, ends + edge, du + row, dv + other_row, left, pair.other > 0,
                        pair.one > 0);
  }
}

// dk and dk_reverse from the sums of `backward`, added up in order. dD is dk[0].
template <class P>
inline void filter_grad(const device float* partial, const device float* ends, const device float* table, device float* dk,
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
  store_filter_gradient<P>(z, ends + head * TAILS, dk + size_t(head) * taps, dk_reverse + size_t(head) * taps_reverse, first, taps,
                           taps_reverse);
}

}  // namespace fftconv

#include "fftconv_long.metal"
