"""The linear recurrence whose state is also corrected along a direction: DeltaNet, gated DeltaNet, RWKV-7.

    S_t = Diag(exp(g_t)) S_{t-1} + b_t (S_{t-1}^T a_t)^T + k_t v_t^T        o_t = scale S_t^T q_t

Within a chunk the corrections u_t = S_{t-1}^T a_t depend on each other: U = A_ab U + A_ak V + (a e^G) S_0 with strictly lower
triangular A. With T = (I - A_ab)^{-1} all but S_0 is known beforehand, so a chunk maps the state by one matrix,
S' = M S_0 + N, and only that runs from chunk to chunk.

Source: Yang et al. 2024, Parallelizing Linear Transformers with the Delta Rule over Sequence Length; Yang et al. 2024, Gated
Delta Networks; Peng et al. 2025, RWKV-7 Goose.
"""

from __future__ import annotations

from functools import partial

from ember_ml.errors import ShapeError
from ember_ml.ops.creation import arange, zeros
from ember_ml.ops.elementwise import exp, floor_divide, where
from ember_ml.ops.linear import matmul
from ember_ml.ops.recurrence.chunks import over_chunks
from ember_ml.ops.recurrence.linear_attention import check, from_chunks, per_step, sizes, to_chunks
from ember_ml.ops.recurrence.linear_scan import state_dtype
from ember_ml.ops.recurrence.pairs import from_here, pairs, to_here
from ember_ml.ops.reduce import sum as total
from ember_ml.ops.shape import concat, cut, expand_dims, reshape, split, squeeze, swap_axes
from ember_ml.tensor import EmberTensor


def unit_inverse(a: EmberTensor) -> EmberTensor:
    """(I - a)^{-1} of strictly lower triangular a (..., C, C), C a power of two.

    From blocks of one upwards: [[P, 0], [X, Q]] has the inverse [[P', 0], [Q' X P', Q']] (X of a, which stands with a minus). As exact as
    forward substitution; the product (I + a)(I + a^2)(I + a^4)... would lose all digits where keys repeat.
    """
    steps, lead = a.shape[-1], a.shape[:-2]
    places = arange(steps, like=a)
    found, size = (a * 0.0 + 1.0)[..., :1].reshape((*lead, steps, 1, 1)), 1
    while size < steps:
        m = steps // (2 * size)
        block = floor_divide(places, 2 * size)
        mine = expand_dims(block, 1) == expand_dims(block, 0)
        own = total(reshape(where(mine, a, 0.0), (*lead, m, 2 * size, m, 2 * size)), axis=-2)
        cross = cut(cut(own, size, 2 * size, axis=-2), 0, size, axis=-1)
        first, second = (squeeze(x, -3) for x in split(reshape(found, (*lead, m, 2, size, size)), 2, axis=-3))
        cross = matmul(second, matmul(cross, first))
        found = concat([concat([first, cross.zeros_like()], axis=-1), concat([cross, second], axis=-1)], axis=-2)
        size *= 2
    return reshape(found, a.shape)


def _segment(carry, xs, _weights, *, steps, gated):
    (state,), (q, k, v, a, b, *g) = carry, xs
    length, heads, dv = v.shape[1:]
    q, k, v, a, b = (to_chunks(x, steps, heads) for x in (q, k, v, a, b))
    g = to_chunks(g[0], steps, heads) if gated else None
    keys = concat([k, b], axis=-2)                        # both kinds of input, side by side
    if g is None:
        read, asked, kept, correcting, decay = q, a, k, b, None
    else:
        here, end = exp(to_here(g)), exp(from_here(g))
        read, asked, kept, correcting = q * here, a * exp(to_here(g, exclusive=True)), k * end, b * end
        decay = swap_axes(exp(total(g, axis=-2, keepdims=True)))
    solved = unit_inverse(pairs(a, b, g, exclusive=True))
    known = matmul(solved, matmul(pairs(a, k, g, exclusive=True), v))     # U for a state of zero
    asked = matmul(solved, asked)                                        # and its dependence on the state
    added = matmul(swap_axes(kept), v) + matmul(swap_axes(correcting), known)
    turned = matmul(swap_axes(correcting), asked)
    states, n = [], v.shape[2]
    for j, (turn, add) in enumerate(zip(split(turned, n, axis=2), split(added, n, axis=2))):
        states.append(expand_dims(state, 2))
        moved = matmul(squeeze(turn, 2), state) + squeeze(add, 2)
        state = moved + (state if decay is None else state * decay[:, :, j])
    before = concat(states, axis=2)
    u = known + matmul(asked, before)
    o = matmul(pairs(q, k, g), v) + matmul(pairs(q, b, g), u) + matmul(read, before)
    return (state,), (from_chunks(o, length),)


def delta_rule(q: EmberTensor, k: EmberTensor, v: EmberTensor, a: EmberTensor, b: EmberTensor,
               decay: EmberTensor | None = None, *, initial: EmberTensor | None = None, scale: float = 1.0,
               reset: EmberTensor | None = None, chunk: int = 32) -> tuple[EmberTensor, EmberTensor]:
    """(o, last state) of the recurrence above.

    Args:
        q, k, a, b: (B, L, h, dk), L >= 1; h divides H. Stable where |b_t| |a_t| does not make the state grow: for the
            delta rule keys of length one and 0 <= beta <= 2.
        v: (B, L, H, dv).
        decay, initial, scale, reset, chunk: as in `linear_attention`.

    Returns: o (B, L, H, dv) in v's dtype; the state (B, H, dk, dv) in float32 or wider.

    Raises ShapeError naming the argument, the shape that was expected and the one that came.
    """
    check("delta_rule", q, k, v, initial, v.shape[-1])
    for name, t in (("a", a), ("b", b)):
        if t.shape != k.shape:
            raise ShapeError(f"delta_rule: expected {name} of k's shape {k.shape}, got {t.shape}")
    batch, length, heads, dv = v.shape
    kind, dk = state_dtype(v.dtype), k.shape[-1]
    g = per_step("delta_rule", decay, k, heads, kind, reset)
    if reset is not None:                                # a forgotten state is not corrected either
        a = where(reshape(reset, (batch, length, 1, 1)), a.zeros_like(), a)
    first = zeros((batch, heads, dk, dv), kind, like=v) if initial is None else initial.astype(kind)
    steps, segment = sizes(chunk, length, batch, heads, max(dk, dv))
    xs = [t.astype(kind) for t in (q * scale if scale != 1.0 else q, k, v, a, b)]
    fn = partial(_segment, steps=steps, gated=g is not None)
    (state,), (o,) = over_chunks(fn, (first,), [*xs, *([] if g is None else [g])], chunk=segment)
    return o.astype(v.dtype), state


def gated_delta_rule(q: EmberTensor, k: EmberTensor, v: EmberTensor, beta: EmberTensor, decay: EmberTensor | None = None,
                     **options) -> tuple[EmberTensor, EmberTensor]:
    """S_t = alpha_t (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T with alpha = exp(decay): gated DeltaNet; DeltaNet without decay.

    Args:
        q, k: (B, L, H, dk), keys of length one. v: (B, L, H, dv). beta: (B, L, H). decay: (B, L, H), logs at most 0.
        options: initial, scale, reset, chunk of `delta_rule`.

    Returns: as `delta_rule`. Source: Yang et al. 2024, Gated Delta Networks, eq. 10.
    """
    for name, t in (("beta", beta), ("decay", decay)):
        if t is not None and t.shape != v.shape[:3]:
            raise ShapeError(f"gated_delta_rule: expected {name} of shape (batch, length, heads) = {v.shape[:3]}, got {t.shape}")
    written = k * expand_dims(beta, -1)
    if decay is None:
        return delta_rule(q, written, v, k, -written, **options)
    decay = expand_dims(decay, -1)
    return delta_rule(q, written, v, k, -written * exp(decay), decay, **options)
