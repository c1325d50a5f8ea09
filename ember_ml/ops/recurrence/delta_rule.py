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
from ember_ml.ops.declare import op
from ember_ml.ops.elementwise import exp, where
from ember_ml.ops.linear import matmul
from ember_ml.ops.recurrence.checks import check_tensors
from ember_ml.ops.recurrence.chunks import over_chunks
from ember_ml.ops.recurrence.linear_attention import by_group, check, from_chunks, per_step, sizes, to_chunks
from ember_ml.ops.recurrence.linear_scan import state_dtype
from ember_ml.ops.recurrence.pairs import earlier, from_here, head_weights, later, not_later, pairs, to_here, two
from ember_ml.ops.reduce import sum as total
from ember_ml.ops.shape import concat, cut, expand_dims, reshape, split, stack, swap_axes
from ember_ml.tensor import EmberTensor


def _inverse(a):
    steps = a.shape[-1]
    if steps <= 2:
        places = arange(steps, like=a)
        return a + (expand_dims(places, 0) == expand_dims(places, 1)).astype(a.dtype)
    half = steps // 2
    upper, lower = cut(a, 0, half, axis=-2), cut(a, half, steps, axis=-2)
    first, second = two(_inverse(stack([cut(upper, 0, half, axis=-1), cut(lower, half, steps, axis=-1)], axis=-3)), -3)
    cross = matmul(second, matmul(cut(lower, 0, half, axis=-1), first))
    return concat([concat([first, cross.zeros_like()], axis=-1), concat([cross, second], axis=-1)], axis=-2)


def _inverse_grad(g, x, _a):
    x = swap_axes(x)
    return where(not_later(g.shape[-1], 1, g), matmul(x, matmul(g, x)), 0.0)


@op(vjp=(_inverse_grad,), owns_gradient=True)
def unit_inverse(a):
    """(I - a)^{-1} of strictly lower triangular a (..., C, C), C a power of two.

    By halves: [[P, 0], [X, Q]] has the inverse [[P', 0], [Q' X P', Q']] (X of a, which stands with a minus). As exact as
    forward substitution; the product (I + a)(I + a^2)(I + a^4)... would lose all digits where keys repeat.
    """
    return _inverse(a)


def _decays(q, a, g):
    """What the decays make of queries at their step and of those that ask before it; of keys at the end; of a whole chunk."""
    if g is None:
        return q, a, (lambda k: k), None
    end = exp(from_here(g))
    whole = split(exp(swap_axes(total(g, axis=-2, keepdims=True))), g.shape[3], axis=3)
    return q * exp(to_here(g)), a * exp(to_here(g, exclusive=True)), (lambda k: k * end), whole


def _scores(q, a, keys, g):
    """Products of q and of a with all `keys`: (..., C, n, C) for each of the two.

    What a step asks of the state before it, it asks as a query of the step before.
    """
    from_q, from_a = two(pairs(stack([q, later(a, -2)], axis=-3), keys, g), -4)
    return from_q, earlier(from_a, -3)


def _states(turned, added, whole, state):
    """The states (B, groups, heads / groups, n, dk, dv) before each of n chunks, and the one after the last."""
    n, before = added.shape[3], []
    for j, (turn, add) in enumerate(zip(split(turned, n, axis=3), split(added, n, axis=3))):
        before.append(state)
        state = matmul(turn, state) + add + (state if whole is None else state * whole[j])
    return concat(before, axis=3), state


def _at_once(state, q, k, v, g, *more):
    """Tensors of a single step, heads first: keys (B, groups, 1, dk, 1), values (B, groups, heads / groups, 1, dv), the state as it
    has decayed, (B, groups, heads / groups, dk, dv)."""
    batch, groups, dk = state.shape[0], k.shape[2], k.shape[3]
    state = by_group(state, groups)
    kept = state if g is None else state * exp(reshape(g, (batch, groups, -1, g.shape[-1], 1)))
    keys = [reshape(x, (batch, groups, 1, dk, 1)) for x in (q, k, *more)]
    return state, kept, reshape(v, (batch, groups, -1, 1, v.shape[-1])), *keys


def _of(key, state):
    """S^T key: (B, groups, heads / groups, 1, dv)."""
    return total(key * state, axis=-2, keepdims=True)


def _one_step(carry, xs, *, scale):
    """`_segment` for one step, by the formula."""
    (state,), (q, k, v, a, b, *g) = carry, xs
    before, kept, value, query, key, ask, answer = _at_once(state, q, k, v, g[0] if g else None, a, b)
    after = kept + answer * _of(ask, before) + key * value
    return (reshape(after, state.shape),), (reshape(_of(query, after) * scale, v.shape),)


def _gated_one_step(carry, xs, *, scale):
    """The same for b_t = -beta_t alpha_t k_t."""
    (state,), (q, k, v, beta, *g) = carry, xs
    _, kept, value, query, key = _at_once(state, q, k, v, g[0] if g else None)
    rate = reshape(beta, (*value.shape[:3], 1, 1))
    after = kept + key * (rate * (value - _of(key, kept)))
    return (reshape(after, state.shape),), (reshape(_of(query, after) * scale, v.shape),)


def _segment(carry, xs, _weights, *, steps, scale):
    (state,), (q, k, v, a, b, *g) = carry, xs
    length, groups, shape = v.shape[1], q.shape[2], state.shape
    if length == 1:
        return _one_step(carry, xs, scale=scale)
    q, k, v, a, b, *g = (to_chunks(x, steps, groups) for x in (q * scale, k, v, a, b, *g))
    g = g[0] if g else None
    read, asked, to_end, whole = _decays(q, a, g)
    from_q, from_a = _scores(q, a, stack([k, b], axis=-3), g)
    of_k, of_b = two(from_a, -2)
    solved = unit_inverse(of_b)
    known = matmul(solved, matmul(of_k, v))              # U for a state of zero
    asked = matmul(solved, asked)                        # and its dependence on the state
    correcting = swap_axes(to_end(b))
    added = matmul(swap_axes(to_end(k)), v) + matmul(correcting, known)
    before, last = _states(matmul(correcting, asked), added, whole, expand_dims(by_group(state, groups), 3))
    of_k, of_b = two(from_q, -2)
    o = matmul(of_k, v) + matmul(of_b, known + matmul(asked, before)) + matmul(read, before)
    return (reshape(last, shape),), (from_chunks(o, length),)


def _gated_segment(carry, xs, _weights, *, steps, scale):
    """The same where b_t = -beta_t alpha_t k_t, with one decay a head: inputs W = beta (V - alpha U) take the place of V and U, and
    alpha_t completes the decays of what step t asks of the state before it to those of a query at t."""
    (state,), (q, k, v, beta, *g) = carry, xs
    length, groups, shape = v.shape[1], q.shape[2], state.shape
    if length == 1:
        return _gated_one_step(carry, xs, scale=scale)
    q, k, v, beta, *g = (to_chunks(x, steps, groups) for x in (q * scale, k, v, expand_dims(beta, -1), *g))
    g = g[0] if g else None
    weights, keys = head_weights(g, steps, q), swap_axes(k)
    from_q, from_k = (products * weights for products in split(matmul(concat([q, k], axis=-2), keys), 2, axis=-2))
    solved = unit_inverse(-beta * where(not_later(steps, 1, q), from_k, 0.0))
    if g is None:
        read, asked, writing, whole = q, k, keys, None
    else:                                                # decays from the first step to each one, and from each one to the last
        here = cut(weights, 0, 1, axis=-1) * exp(cut(g, 0, 1, axis=-2))
        read, asked, writing = q * here, k * here, keys * cut(weights, steps - 1, steps, axis=-2)
        whole = split(cut(here, steps - 1, steps, axis=-2), g.shape[3], axis=3)
    known, asked = matmul(solved, beta * v), matmul(solved, -beta * asked)
    before, last = _states(matmul(writing, asked), matmul(writing, known), whole, expand_dims(by_group(state, groups), 3))
    o = matmul(from_q, known + matmul(asked, before)) + matmul(read, before)
    return (reshape(last, shape),), (from_chunks(o, length),)


def _over_time(segment, xs, initial, k, v, scale, chunk):
    (batch, length, heads, dv), dk, kind = v.shape, k.shape[-1], state_dtype(v.dtype)
    first = zeros((batch, heads, dk, dv), kind, like=v) if initial is None else initial.astype(kind)
    steps, span = sizes(chunk, length, batch, heads, max(dk, dv))
    (state,), (o,) = over_chunks(partial(segment, steps=steps, scale=scale), (first,), [x.astype(kind) for x in xs if x is not None],
                                 chunk=span)
    return o.astype(v.dtype), state


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
    check_tensors("delta_rule", chunk=chunk, v=v, q=q, k=k, a=a, b=b, decay=decay, initial=initial)
    check("delta_rule", q, k, v, initial, v.shape[-1])
    for name, t in (("a", a), ("b", b)):
        if t.shape != k.shape:
            raise ShapeError(f"delta_rule: expected {name} of k's shape {k.shape}, got {t.shape}")
    batch, length, heads, _ = v.shape
    g = per_step("delta_rule", decay, k, heads, state_dtype(v.dtype), reset)
    if reset is not None:                                # a forgotten state is not corrected either
        a = where(reshape(reset, (batch, length, 1, 1)), a.zeros_like(), a)
    return _over_time(_segment, [q, k, v, a, b, g], initial, k, v, scale, chunk)


def gated_delta_rule(q: EmberTensor, k: EmberTensor, v: EmberTensor, beta: EmberTensor, decay: EmberTensor | None = None, *,
                     initial: EmberTensor | None = None, scale: float = 1.0, reset: EmberTensor | None = None,
                     chunk: int = 32) -> tuple[EmberTensor, EmberTensor]:
    """S_t = alpha_t (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T with alpha = exp(decay): gated DeltaNet; DeltaNet without decay.

    Args:
        q, k: (B, L, h, dk), keys of length one; h divides H. v: (B, L, H, dv). beta: (B, L, H).
        decay: (B, L, H), logs at most 0.
        initial, scale, reset, chunk: as in `linear_attention`.

    Returns: as `delta_rule`. Raises ShapeError. Source: Yang et al. 2024, Gated Delta Networks, eq. 10.
    """
    check_tensors("gated_delta_rule", chunk=chunk, v=v, q=q, k=k, beta=beta, decay=decay, initial=initial)
    check("gated_delta_rule", q, k, v, initial, v.shape[-1])
    for name, t in (("beta", beta), ("decay", decay)):
        if t is not None and t.shape != v.shape[:3]:
            raise ShapeError(f"gated_delta_rule: expected {name} of shape (batch, length, heads) = {v.shape[:3]}, got {t.shape}")
    g = None if decay is None else expand_dims(decay, -1)
    g = per_step("gated_delta_rule", g, k, v.shape[2], state_dtype(v.dtype), reset)
    return _over_time(_gated_segment, [q, k, v, beta, g], initial, k, v, scale, chunk)
