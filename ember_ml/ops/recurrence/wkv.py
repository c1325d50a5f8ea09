"""The WKV of RWKV-4: an exponentially decaying weighted mean of the values, with a bonus for the present.

    wkv_t = (sum_{s<t} e^{-(t-1-s) w + k_s} v_s + e^{u + k_t} v_t) / (sum_{s<t} e^{-(t-1-s) w + k_s} + e^{u + k_t})

Numerator and denominator are two linear recurrences with one decay. Their state is kept times e^{-p_t} with the running maximum p_t =
max(p_{t-1} - w, k_t), so that no exponent is positive; the result does not depend on p, which therefore is a constant to the gradient.

Source: Peng et al. 2023, RWKV: Reinventing RNNs for the Transformer Era, eq. 16 and appendix D.
"""

from __future__ import annotations

from ember_ml.autodiff.gradient import stop_gradient
from ember_ml.errors import ShapeError
from ember_ml.ops.creation import arange, full, zeros
from ember_ml.ops.elementwise import exp, maximum, where
from ember_ml.ops.recurrence.checks import check_state, check_tensors, kept
from ember_ml.ops.recurrence.chunks import over_chunks
from ember_ml.ops.recurrence.cumulative import cummax, cummax_since
from ember_ml.ops.recurrence.linear_scan import linear_scan_rows, state_dtype
from ember_ml.ops.shape import concat, cut, expand_dims, squeeze
from ember_ml.tensor import EmberTensor

#: the log of an empty sum: finite, so that differences stay numbers
NOTHING = -1e30


def _read(top, bottom, p, k, v, u):
    """The weighted mean at a step whose past is top / bottom, in the scale e^-p."""
    present = k + u
    largest = stop_gradient(maximum(p, present))
    old, new = exp(p - largest), exp(present - largest)
    return (old * top + new * v) / (old * bottom + new)


def _one_step(carry, xs, weights):
    (k, v), (w, u) = xs, weights
    top, bottom, p = (expand_dims(c, 1) for c in carry)
    running = stop_gradient(maximum(p - w, k))
    decay, weight = exp(p - w - running), exp(k - running)
    after = decay * top + weight * v, decay * bottom + weight, running
    return tuple(squeeze(x, 1) for x in after), (_read(top, bottom, p, k, v, u),)


def _chunk(carry, xs, weights):
    (top, bottom, p), (k, v, *keep), (w, u) = carry, xs, weights
    steps = k.shape[1]
    if steps == 1 and not keep:
        return _one_step(carry, xs, weights)
    # p_t + w t is a running maximum; within a chunk t stays small
    drift = expand_dims(arange(1, steps + 1, like=k).astype(k.dtype), 1) * w
    if keep:
        reset = stop_gradient(keep[0]) == 0.0
        first = where(cut(reset, 0, 1, axis=1), NOTHING, expand_dims(p, 1))
        rising = concat([maximum(cut(k + drift, 0, 1, axis=1), first), cut(k + drift, 1, steps, axis=1)], axis=1)
        running = stop_gradient(cummax_since(rising, reset[:, :, 0]) - drift)
    else:
        running = stop_gradient(maximum(cummax(k + drift, axis=1), expand_dims(p, 1)) - drift)
    before = concat([expand_dims(p, 1), cut(running, 0, steps - 1, axis=1)], axis=1)
    if keep:
        before = where(reset, NOTHING, before)           # the decay from there is 0
    decay, weight = exp(before - w - running), exp(k - running)
    tops, last_top = linear_scan_rows(decay, weight * v, top)
    bottoms, last_bottom = linear_scan_rows(decay, weight, bottom)
    past_top = concat([expand_dims(top, 1), cut(tops, 0, steps - 1, axis=1)], axis=1)
    past_bottom = concat([expand_dims(bottom, 1), cut(bottoms, 0, steps - 1, axis=1)], axis=1)
    y = _read(past_top, past_bottom, before, k, v, u)
    return (last_top, last_bottom, cut(running, steps - 1, steps, axis=1)[:, 0]), (y,)


def wkv(k: EmberTensor, v: EmberTensor, w: EmberTensor, u: EmberTensor, initial: tuple | None = None, *,
        reset: EmberTensor | None = None, chunk: int = 256) -> tuple[EmberTensor, tuple]:
    """The weighted mean above for every channel, with time on axis 1.

    Args:
        k, v: (B, L, D), log weights and values, L >= 1.
        w: (D,), the decay per step, positive (RWKV's exp(time_decay)). u: (D,), bonus (time_first).
        initial: (numerator, denominator, p), (B, D) each, as returned; default nothing.
        reset: bool (B, L): where true, what came before is forgotten.
        chunk: steps whose inside is held at once.

    Returns: y (B, L, D) in v's dtype, and the state, float32 or wider.

    Raises ShapeError naming the argument, the shape that was expected and the one that came.
    """
    check_tensors("wkv", chunk=chunk, k=k, v=v, w=w, u=u)
    if k.ndim != 3:
        raise ShapeError(f"wkv: expected k of shape (batch, length >= 1, channels), got {k.shape}")
    rest = (k.shape[0], k.shape[2])
    for name, t, shape in (("v", v, k.shape), ("w", w, rest[1:]), ("u", u, rest[1:])):
        if t.shape != shape:
            raise ShapeError(f"wkv: expected {name} of shape {shape}, got {t.shape}")
    check_state("wkv", initial, (rest,) * 3)
    kind = state_dtype(k.dtype)
    if initial is None:
        initial = (zeros(rest, kind, like=k), zeros(rest, kind, like=k), full(rest, NOTHING, kind, like=k))
    state, (y,) = over_chunks(_chunk, [s.astype(kind) for s in initial], [k.astype(kind), v.astype(kind), *kept("wkv", reset, k, kind)],
                              [w.astype(kind), u.astype(kind)], chunk)
    return y.astype(v.dtype), state
