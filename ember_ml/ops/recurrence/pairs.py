"""Products of queries with earlier keys inside a chunk, each weighed with the decay between the two.

    A[i, j] = sum_d q_i[d] k_j[d] exp(g_{j+1}[d] + ... + g_i[d])   for j <= i, else 0

g is the log of the decay, at most 0, -inf for "forget all". A sum never contains more than the steps between j and i, and no
exponent is positive: a decay of zero is exact, and no large sum swallows a small one next to it.
`exclusive` leaves out the decay of step i and the pair i = j: the query reads the state before step i.
"""

from __future__ import annotations

from ember_ml.ops.creation import arange
from ember_ml.ops.elementwise import exp, where
from ember_ml.ops.linear import matmul
from ember_ml.ops.recurrence.cumulative import cumsum
from ember_ml.ops.reduce import sum as total
from ember_ml.ops.shape import broadcast_to, concat, cut, expand_dims, flip, reshape, swap_axes
from ember_ml.tensor import EmberTensor

#: steps whose pairs are formed channel by channel where every channel has a decay of its own
BASE = 8


def before(x: EmberTensor, axis: int) -> EmberTensor:
    """x moved one step along `axis`, a zero in front."""
    n = x.shape[axis]
    return concat([cut(x, 0, 1, axis=axis).zeros_like(), cut(x, 0, n - 1, axis=axis)], axis=axis)


def to_here(g: EmberTensor, exclusive: bool = False) -> EmberTensor:
    """Sums of g (..., C, d) from the first step to each one, itself left out if `exclusive`."""
    return cumsum(before(g, -2) if exclusive else g, axis=-2)


def from_here(g: EmberTensor) -> EmberTensor:
    """Sums of g (..., C, d) from after each step to the last one."""
    back = flip(g, axis=-2)
    return flip(cumsum(before(back, -2), axis=-2), axis=-2)


def not_later(n: int, gap: int, like: EmberTensor) -> EmberTensor:
    """bool (n, n): j <= i - gap."""
    places = arange(n, like=like)
    return expand_dims(places, 0) <= expand_dims(places - gap, 1)


def _between(g, exclusive):
    """Sums of g (..., C, d) over the steps after j up to i (before i, if exclusive), (..., C, C, d); zero where none is."""
    n = g.shape[-2]
    steps = expand_dims(before(g, -2) if exclusive else g, -2)
    counts = expand_dims(not_later(n, 2 if exclusive else 1, g), -1)
    return cumsum(where(counts, broadcast_to(steps, (*g.shape[:-1], n, g.shape[-1])), 0.0), axis=-3)


def _direct(q, k, g, exclusive):
    """All pairs at once. g (..., C, 1): one decay a head; (..., C, d): one a channel, through a (C, C, d) product."""
    seen = not_later(q.shape[-2], 1 if exclusive else 0, q)
    if g is None:
        return where(seen, matmul(q, swap_axes(k)), 0.0)
    weight = exp(_between(g, exclusive))
    if g.shape[-1] == 1:
        return where(seen, matmul(q, swap_axes(k)) * reshape(weight, weight.shape[:-1]), 0.0)
    return where(seen, total(weight * expand_dims(q, -2) * expand_dims(k, -3), axis=-1), 0.0)


def pairs(q: EmberTensor, k: EmberTensor, g: EmberTensor | None, exclusive: bool = False) -> EmberTensor:
    """A of the module's formula.

    Args:
        q, k: (..., C, d), C a power of two where g has one decay a channel.
        g: (..., C, 1) or (..., C, d), at most 0; None for no decay.
        exclusive: see the module.

    Returns: (..., C, C).
    """
    steps = q.shape[-2]
    if g is None or g.shape[-1] == 1 or steps <= BASE:
        return _direct(q, k, g, exclusive)

    def blocks(x, size):
        return reshape(x, (*x.shape[:-2], steps // size, size, x.shape[-1]))

    size = BASE
    found = _direct(*(blocks(x, size) for x in (q, k, g)), exclusive)
    while size < steps:                                  # two blocks side by side: the later one's queries, the earlier one's keys
        halves = [reshape(blocks(x, size), (*x.shape[:-2], steps // (2 * size), 2, size, x.shape[-1])) for x in (q, k, g)]
        (_, late_q), (early_k, _), (early_g, late_g) = (_two(x, -3) for x in halves)
        cross = matmul(late_q * exp(to_here(late_g, exclusive)), swap_axes(early_k * exp(from_here(early_g))))
        first, second = _two(reshape(found, (*cross.shape[:-2], 2, size, size)), -3)
        found = concat([concat([first, cross.zeros_like()], axis=-1), concat([cross, second], axis=-1)], axis=-2)
        size *= 2
    return reshape(found, (*q.shape[:-1], steps))


def _two(x, axis):
    """The two entries along an axis of length two."""
    axis %= x.ndim
    shape = x.shape[:axis] + x.shape[axis + 1:]
    return [reshape(cut(x, i, i + 1, axis=axis), shape) for i in (0, 1)]
