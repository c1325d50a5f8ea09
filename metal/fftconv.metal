// Long convolution by FFT: y = q * mask * gelu(k * (u v) + D (u v)), its gradients, and the filters' spectra.
//
// Twin of cuda/fftconv.cu: the same names, the same algorithm. Every function works for one thread of a threadgroup; rows of
// inputs may have any strides, `along` is the one between their numbers. Inputs are template types because MLX keeps arrays
// of fewer than 8 elements in the constant address space.
//
// fftconv_transform explains the algorithm.
#include "fftconv_transform.metal"
#include "fftconv_rows.metal"

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

// y. Rows of one head follow each other, so that they find its spectrum in the cache.
template <class P, typename U, typename V, typename Q, typename Skip, typename Mask, typename T>
inline void forward(U u, V v, Q q, const device float* filter, const device float* tails, Skip D, Mask mask, const device float* table,
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
  if (P::TAILED) mend<P>(z, tails + (size_t(b) * heads + head) * TAILS, first);
  const float factor = P::MASKED ? mask[b * heads + head] : 1.0f;
  store_output<P>(z, q + qs.of(b, head) + first * qs.along, qs.along, factor,
                  y + (size_t(b) * heads + head) * length + first, left);
}

// tails[b, h, n] = sum of x[j] k[h, points + n - j] over the whole row, n < TAILS: what a convolution of 2 M = `points`
// numbers has no room for, so that it comes back. Lengths of 2^j + 2 have three of them, and need no longer transform.
template <bool GATED, typename U, typename V, typename Filter>
inline void tail(U u, V v, Filter k, device float* tails, uint batch, uint heads, int length, int taps, int points,
                 Strides us, Strides vs, uint group, uint lane) {
  const uint at = group * 256 + lane, n = at % TAILS, row = at / TAILS;
  if (row >= batch * heads) return;
  const uint b = row / heads, head = row % heads;
  float sum = 0.0f;
  for (int j = points + int(n) - taps + 1; j < length; j++) {
    float x = float(u[us.of(b, head) + j * us.along]);
    if constexpr (GATED) x *= float(v[vs.of(b, head) + j * vs.along]);
    sum = fma(x, k[size_t(head) * taps + points + n - j], sum);
  }
  tails[at] = sum;
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

#include "fftconv_long.metal"
