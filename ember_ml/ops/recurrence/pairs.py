"""Products of queries with earlier keys inside a chunk, each weighed with the decay between the two.

    A[i, j] = sum_d q_i[d] k_j[d] exp(g_{j+1}[d] + ... + g_i[d])   for j <= i, else 0

g is the log of the decay, at most 0, -inf for "forget all". A sum never contains more than the steps between j and i, and no
exponent is positive: a decay of zero is exact, and no large sum swallows a small one next to it.

Several kinds of queries meet several kinds of keys at once (m and n of them), since they share the decays.
"""

from __future__ import annotations

from ember_ml.ops.creation import constant
from ember_ml.ops.elementwise import exp, where
from ember_ml.ops.linear import matmul
from ember_ml.ops.recurrence.cumulative import cumsum
from ember_ml.ops.shape import broadcast_to, concat, cut, expand_dims, flip, reshape, swap_axes
from ember_ml.tensor import EmberTensor

#: steps whose pairs are formed channel by channel where every channel has a decay of its own
BASE = 4


def earlier(x: EmberTensor, axis: int) -> EmberTensor:
    """x moved one step on along `axis`, a zero in front: what was there a step earlier."""
    n = x.shape[axis]
    return concat([cut(x, 0, 1, axis=axis).zeros_like(), cut(x, 0, n - 1, axis=axis)], axis=axis)


def later(x: EmberTensor, axis: int) -> EmberTensor:
    """x moved one step back along `axis`, a zero at the end: what will be there a step later."""
    n = x.shape[axis]
    return concat([cut(x, 1, n, axis=axis), cut(x, 0, 1, axis=axis).zeros_like()], axis=axis)


def to_here(g: EmberTensor, exclusive: bool = False) -> EmberTensor:
    """Sums of g (..., C, d) from the first step to each one, itself left out if `exclusive`."""
    return cumsum(earlier(g, -2) if exclusive else g, axis=-2)


def from_here(g: EmberTensor) -> EmberTensor:
    """Sums of g (..., C, d) from after each step to the last one."""
    return flip(cumsum(flip(later(g, -2), axis=-2), axis=-2), axis=-2)


def not_later(n: int, gap: int, like: EmberTensor) -> EmberTensor:
    """bool (n, n): j <= i - gap."""
    return constant(_triangle, n, gap, dtype="bool", like=like)


def _triangle(n, gap):
    return [[j <= i - gap for j in range(n)] for i in range(n)]


def _between(g):
    """exp of the sums of g (..., C, d) over the steps after j up to i, (..., C, C, d); one for j >= i."""
    n = g.shape[-2]
    counts = expand_dims(not_later(n, 1, g), -1)
    steps = where(counts, broadcast_to(expand_dims(g, -2), (*g.shape[:-1], n, g.shape[-1])), 0.0)
    return exp(cumsum(steps, axis=-3))


def head_weights(g, steps: int, like: EmberTensor) -> EmberTensor:
    """The factors in A of one decay a head, (..., C, C): zero for j > i. g (..., C, 1), None for no decay."""
    seen = not_later(steps, 0, like)
    if g is None:
        return seen.astype(like.dtype)
    g = where(not_later(steps, 1, g), broadcast_to(g, (*g.shape[:-1], steps)), 0.0)
    return where(seen, exp(cumsum(g, axis=-2)), 0.0)


def _products(q, k):
    """All q_i . k_j: (..., m, C, d) and (..., n, C, d) give (..., m, C, n, C)."""
    m, steps, n, d = q.shape[-3], q.shape[-2], k.shape[-3], k.shape[-1]
    found = matmul(reshape(q, (*q.shape[:-3], m * steps, d)), swap_axes(reshape(k, (*k.shape[:-3], n * steps, d))))
    return reshape(found, (*found.shape[:-2], m, steps, n, steps))


def _direct(q, k, g):
    """All pairs at once. g (..., C, 1): one decay a head; (..., C, d): one a channel, through a (C, C, d) product."""
    m, steps, n = q.shape[-3], q.shape[-2], k.shape[-3]
    seen = expand_dims(not_later(steps, 0, q), 1)
    if g is None:
        return where(seen, _products(q, k), 0.0)
    weight = _between(g)
    if g.shape[-1] == 1:
        return where(seen, _products(q, k) * reshape(weight, (*g.shape[:-2], 1, steps, 1, steps)), 0.0)
    keys = expand_dims(weight, -3) * expand_dims(k, -4)                  # (..., i, n, j, d)
    keys = reshape(keys, (*keys.shape[:-3], n * steps, keys.shape[-1]))
    found = swap_axes(matmul(swap_axes(q, -2, -3), swap_axes(keys)), -2, -3)
    return where(seen, reshape(found, (*found.shape[:-1], n, steps)), 0.0)


def _blocks(x, size):
    """(..., kinds, C, d) as (..., C / size, kinds, size, d)."""
    kinds, steps, d = x.shape[-3:]
    return swap_axes(reshape(x, (*x.shape[:-3], kinds, steps // size, size, d)), -3, -4)


def pairs(q: EmberTensor, k: EmberTensor, g: EmberTensor | None) -> EmberTensor:
    """A of the module's formula.

    Args:
        q: (..., m, C, d). k: (..., n, C, d). C is a power of two where g has one decay a channel.
        g: (..., C, 1) or (..., C, d), at most 0; None for no decay.

    Returns: (..., m, C, n, C).
    """
    m, steps, n = q.shape[-3], q.shape[-2], k.shape[-3]
    if g is None or g.shape[-1] == 1 or steps <= BASE:
        return _direct(q, k, g)
    size, g = BASE, expand_dims(g, -3)
    found = _direct(_blocks(q, size), _blocks(k, size), reshape(_blocks(g, size), (*g.shape[:-3], steps // size, size, g.shape[-1])))
    while size < steps:                                  # two blocks side by side: the later one's queries, the earlier one's keys
        lead = (steps // (2 * size), 2)
        (_, late_q), (early_k, _), (early_g, late_g) = (
            two(reshape(x, (*x.shape[:-4], *lead, *x.shape[-3:])), -4) for x in (_blocks(x, size) for x in (q, k, g)))
        cross = _products(late_q * exp(to_here(late_g)), early_k * exp(from_here(early_g)))
        first, second = two(reshape(found, (*found.shape[:-5], *lead, *found.shape[-4:])), -5)
        found = concat([concat([first, cross.zeros_like()], axis=-1), concat([cross, second], axis=-1)], axis=-3)
        size *= 2
    return reshape(found, (*found.shape[:-5], m, steps, n, steps))


def two(x: EmberTensor, axis: int) -> list[EmberTensor]:
    """The two entries along an axis of length two."""
    axis %= x.ndim
    shape = x.shape[:axis] + x.shape[axis + 1:]
    return [reshape(cut(x, i, i + 1, axis=axis), shape) for i in (0, 1)]
