"""The linear recurrence with a matrix state, chunkwise: linear and gated linear attention, RetNet, Mamba-2, RWKV 5 and 6.

    S_t = Diag(exp(g_t)) S_{t-1} + k_t v_t^T        (S: key channels x value channels, for each head)
    o_t = scale S_t^T q_t                           (exclusive: S_{t-1}^T q_t)

Inside a chunk of C steps this is a masked product of queries and keys (`pairs`); the states follow chunk after
chunk. A segment of several chunks is worked on at once; the gradient computes a segment again.

Source: Katharopoulos et al. 2020, Transformers are RNNs; Yang et al. 2023, Gated Linear Attention Transformers with
Hardware-Efficient Training, section 4; Dao and Gu 2024, Transformers are SSMs, section 6.
"""

from __future__ import annotations

import math
from functools import partial

from ember_ml.errors import ShapeError
from ember_ml.ops.creation import zeros
from ember_ml.ops.elementwise import exp, where
from ember_ml.ops.linear import matmul
from ember_ml.ops.recurrence.checks import check_reset, check_tensors
from ember_ml.ops.recurrence.chunks import over_chunks
from ember_ml.ops.recurrence.linear_scan import state_dtype
from ember_ml.ops.recurrence.pairs import earlier, from_here, later, pairs, to_here
from ember_ml.ops.reduce import sum as total
from ember_ml.ops.shape import broadcast_to, concat, cut, expand_dims, pad, permute_dims, reshape, split, swap_axes
from ember_ml.tensor import EmberTensor

#: numbers of one (chunk, chunk) or state array that a segment may hold: 1 MiB in float32
WORKSPACE = 1 << 18


def to_chunks(x: EmberTensor, steps: int, groups: int) -> EmberTensor:
    """(B, T, heads, d) as (B, groups, heads / groups, T / steps, steps, d), padded with zeros at the end."""
    batch, length, heads, width = x.shape
    spare = -length % steps
    x = pad(x, ((0, 0), (0, spare), (0, 0), (0, 0))) if spare else x
    x = permute_dims(reshape(x, (batch, -1, steps, groups, heads // groups, width)), (0, 3, 4, 1, 2, 5))
    # One axis of all chunks: they are laid out in order here, once, and not again by each of many products.
    return reshape(reshape(x, (-1, steps, width)), x.shape)


def from_chunks(x: EmberTensor, length: int) -> EmberTensor:
    """The way back from `to_chunks`: (B, groups, heads / groups, n, C, d) to (B, length, heads, d)."""
    batch, groups, shared, n, steps, width = x.shape
    return cut(reshape(permute_dims(x, (0, 3, 4, 1, 2, 5)), (batch, n * steps, groups * shared, width)), 0, length, axis=1)


def by_group(state: EmberTensor, groups: int) -> EmberTensor:
    """(B, heads, dk, dv) as (B, groups, heads / groups, dk, dv)."""
    return reshape(state, (state.shape[0], groups, -1, *state.shape[2:]))


def _one_step(state, q, k, v, g, exclusive):
    """`attend` for a segment of one step, by the formula."""
    (batch, _, dk, dv), groups = state.shape, k.shape[2]
    before = by_group(state, groups)
    kept = before if g is None else before * exp(reshape(g, (batch, groups, -1, g.shape[-1], 1)))
    after = kept + reshape(k, (batch, groups, 1, dk, 1)) * reshape(v, (batch, groups, -1, 1, dv))
    o = total(reshape(q, (batch, groups, 1, dk, 1)) * (before if exclusive else after), axis=-2)
    return reshape(after, state.shape), reshape(o, v.shape)


def attend(state: EmberTensor, q: EmberTensor, k: EmberTensor, v: EmberTensor, g: EmberTensor | None, steps: int,
           exclusive: bool = False) -> tuple[EmberTensor, EmberTensor]:
    """(last state, o) of one segment: q, k (B, T, h, dk), v (B, T, H, dv), g (B, T, H, 1 or dk) or None; state (B, H, dk, dv).

    Inside, heads are groups x heads that share a query and a key, which are never repeated as such.
    """
    length, groups, shape = v.shape[1], k.shape[2], state.shape
    if length == 1:
        return _one_step(state, q, k, v, g, exclusive)
    q, k, v = (to_chunks(x, steps, groups) for x in (q, k, v))
    g = None if g is None else to_chunks(g, steps, groups)
    weights = pairs(expand_dims(later(q, -2) if exclusive else q, -3), expand_dims(k, -3), g)
    weights = reshape(weights, (*weights.shape[:-4], steps, steps))
    o = matmul(earlier(weights, -2) if exclusive else weights, v)
    if g is None:
        read, kept, decays = q, k, None
    else:
        read, kept = q * exp(to_here(g, exclusive)), k * exp(from_here(g))
        decays = split(exp(swap_axes(total(g, axis=-2, keepdims=True))), v.shape[3], axis=3)
    state, before = expand_dims(by_group(state, groups), 3), []
    for j, added in enumerate(split(matmul(swap_axes(kept), v), v.shape[3], axis=3)):
        before.append(state)
        state = added + (state if decays is None else state * decays[j])
    return reshape(state, shape), from_chunks(o + matmul(read, concat(before, axis=3)), length)


def _segment(carry, xs, _weights, *, steps, exclusive, gated, eps):
    q, k, v, *g = xs
    if eps is not None:                                  # one more value channel, of ones, sums the keys
        v = concat([v, cut(v, 0, 1, axis=-1).ones_like()], axis=-1)
    state, o = attend(carry[0], q, k, v, g[0] if gated else None, steps, exclusive)
    if eps is not None:
        width = o.shape[-1] - 1
        o = cut(o, 0, width, axis=-1) / (cut(o, width, width + 1, axis=-1) + eps)
    return (state,), (o,)


def per_step(name: str, decay: EmberTensor | None, k: EmberTensor, heads: int, kind,
             reset: EmberTensor | None) -> EmberTensor | None:
    """The log decay as (B, L, H, 1 or dk), -inf at resets. Raises ShapeError for another form."""
    batch, length, _, width = k.shape
    check_reset(name, reset, (batch, length))
    if decay is None and reset is None:
        return None
    if decay is None:
        decay = zeros((1, 1, 1, 1), kind, like=k)
    if decay.ndim != 4 or any(n not in (1, m) for n, m in zip(decay.shape, (batch, length, heads, width))):
        raise ShapeError(f"{name}: expected decay of shape ({batch} or 1, {length} or 1, {heads} or 1, {width} or 1) (batch, "
                         f"length, heads, key channels; a last axis of 1 is one decay a head), got {decay.shape}")
    decay = broadcast_to(decay.astype(kind), (batch, length, heads, decay.shape[-1]))
    if reset is not None:
        decay = where(reshape(reset, (batch, length, 1, 1)), decay.zeros_like() - math.inf, decay)
    return decay


def check(name: str, q: EmberTensor, k: EmberTensor, v: EmberTensor, initial: EmberTensor | None, dv: int):
    """Raises ShapeError naming what does not fit."""
    if v.ndim != 4:
        raise ShapeError(f"{name}: expected v of shape (batch, length >= 1, heads, value channels), got {v.shape}")
    batch, length, heads, _ = v.shape
    if k.ndim != 4 or k.shape[:2] != (batch, length) or heads % k.shape[2]:
        raise ShapeError(f"{name}: expected k of shape ({batch}, {length}, {heads} or a divisor of it, key channels), got {k.shape}")
    if q.shape != k.shape:
        raise ShapeError(f"{name}: expected q of k's shape {k.shape}, got {q.shape}")
    if initial is not None and initial.shape != (want := (batch, heads, k.shape[-1], dv)):
        raise ShapeError(f"{name}: expected initial of shape {want}, got {initial.shape}")


def sizes(chunk: int, length: int, batch: int, heads: int, width: int) -> tuple[int, int]:
    """(steps of a chunk: a power of two, steps of a segment)."""
    steps = 1 << (max(1, min(chunk, length)) - 1).bit_length()
    return steps, steps * max(1, WORKSPACE // max(1, batch * heads * steps * max(steps, width)))


def linear_attention(q: EmberTensor, k: EmberTensor, v: EmberTensor, decay: EmberTensor | None = None, *,
                     initial: EmberTensor | None = None, scale: float = 1.0, normalize: float | None = None,
                     exclusive: bool = False, reset: EmberTensor | None = None,
                     chunk: int = 64) -> tuple[EmberTensor, EmberTensor]:
    """(o, last state) of the recurrence above.

    Args:
        q, k: (B, L, h, dk), L >= 1; h divides H: a query or key head may serve several value heads.
        v: (B, L, H, dv).
        decay: logs of the decays, at most 0 and -inf for zero, broadcasting to (B, L, H, dk): always four axes, the last
            one 1 for one decay a head. None for none.
        initial: (B, H, dk, dv), the state before the first step; default zero.
        scale: factor of the outputs.
        normalize: None, or eps: o_t is divided by q_t . n_t + eps, where n sums the keys as S sums k v^T. The state then
            has one more value channel, n, as its last: (B, H, dk, dv + 1).
        exclusive: read the state before the step (at a reset: nothing).
        reset: bool (B, L): where true, the state is forgotten before the step.
        chunk: steps of a chunk, rounded up to a power of two.

    Returns: o (B, L, H, dv) in v's dtype; the state in float32 or wider.

    Raises ShapeError naming the argument, the shape that was expected and the one that came.
    """
    wide = 0 if normalize is None else 1
    check_tensors("linear_attention", chunk=chunk, v=v, q=q, k=k, decay=decay, initial=initial)
    check("linear_attention", q, k, v, initial, v.shape[-1] + wide)
    batch, length, heads, dv = v.shape
    kind, dk = state_dtype(v.dtype), k.shape[-1]
    g = per_step("linear_attention", decay, k, heads, kind, reset)
    if exclusive and reset is not None:                  # what is read there is forgotten, too
        q = where(reshape(reset, (batch, length, 1, 1)), q.zeros_like(), q)
    first = zeros((batch, heads, dk, dv + wide), kind, like=v) if initial is None else initial.astype(kind)
    steps, segment = sizes(chunk, length, batch, heads, max(dk, dv))
    xs = [(q * scale if scale != 1.0 else q).astype(kind), k.astype(kind), v.astype(kind), *([] if g is None else [g])]
    fn = partial(_segment, steps=steps, exclusive=exclusive, gated=g is not None, eps=normalize)
    (state,), (o,) = over_chunks(fn, (first,), xs, chunk=segment)
    return o.astype(v.dtype), state
