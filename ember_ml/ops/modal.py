"""Modal filters: impulse responses of diagonal linear systems, and the states that inputs leave in them.

    h_t = Re(sum_s R_s p_s^t),   state_T = sum_{t < T} p^{T-1-t} u_t,   p_s = e^{log_decay_s + i angle_s}

No tensor with states and times exists at once: with t = j C + r and p^t = p^{jC} p^r both are products of matrices whose sides are
the states, C places within a chunk and L / C chunks.

Source: Massaroli et al. 2023, Laughing Hyena Distillery, section 3; Poli et al. 2023, StripedHyena.
"""

from __future__ import annotations

from math import isqrt

from ember_ml.errors import ShapeError
from ember_ml.ops.creation import arange, zeros
from ember_ml.ops.elementwise import cos, exp, sin
from ember_ml.ops.linear import matmul
from ember_ml.ops.recurrence.linear_scan import state_dtype
from ember_ml.ops.reduce import sum as total
from ember_ml.ops.shape import concat, cut, expand_dims, pad, reshape, stack
from ember_ml.tensor import EmberTensor

#: positions whose part of a state is one product; the temporaries hold states / CHUNK numbers an input
CHUNK = 256


def _powers(log_decay, angle, times):
    """p^t for t in `times` (T,), with T as the last axis: (real part, imaginary part), the latter None for real poles."""
    size = exp(expand_dims(log_decay, -1) * times)
    if angle is None:
        return size, None
    turn = expand_dims(angle, -1) * times
    return size * cos(turn), size * sin(turn)


def _times(a, b):
    """The product of two complex numbers as pairs (real, imaginary), where None is zero."""
    (ar, ai), (br, bi) = a, b
    if ai is None and bi is None:
        return ar * br, None
    if ai is None:
        return ar * br, ar * bi
    if bi is None:
        return ar * br, ai * br
    return ar * br - ai * bi, ar * bi + ai * br


def _pair(x, angle):
    """(real, imaginary) of (..., S), or of (..., S, 2) where the poles are complex."""
    return (x, None) if angle is None else (x[..., 0], x[..., 1])


def _joined(pair):
    return pair[0] if pair[1] is None else stack(pair, axis=-1)


def _range(start, stop, step, like, dtype):
    return arange(start, stop, step, like=like).astype(dtype)


def _check(name, log_decay, angle, tensors):
    if log_decay.ndim != 2 or (angle is not None and angle.shape != log_decay.shape):
        raise ShapeError(f"{name}: expected log_decay and angle of shape (channels, states), got {log_decay.shape} and "
                         f"{None if angle is None else angle.shape}")
    want = log_decay.shape + (() if angle is None else (2,))
    for what, t in tensors.items():
        if t is not None and t.shape[-len(want):] != want:
            raise ShapeError(f"{name}: expected {what} of shape (..., {', '.join(map(str, want))}), got {t.shape}")


def modal_filter(log_decay: EmberTensor, angle: EmberTensor | None, residues: EmberTensor, length: int) -> EmberTensor:
    """h_0 ... h_{length - 1}.

    Args:
        log_decay: (D, S), log of the poles' size, negative for a response that fades.
        angle: (D, S), of the poles, radians; None for real poles.
        residues: (..., D, S), or (..., D, S, 2), real and imaginary part, for complex poles.

    Returns: (..., D, length). Memory: O(S sqrt(length)) a channel beside it.

    Raises ShapeError naming the argument, the shape that was expected and the one that came.
    """
    _check("modal_filter", log_decay, angle, {"residues": residues})
    inside = isqrt(length - 1) + 1
    chunks = -(-length // inside)
    kind = log_decay.dtype
    first = _powers(log_decay, angle, _range(0, chunks * inside, inside, log_decay, kind))
    re, im = _times(tuple(None if r is None else expand_dims(r, -1) for r in _pair(residues, angle)), first)
    within, turn = _powers(log_decay, angle, _range(0, inside, 1, log_decay, kind))
    if im is None:
        h = matmul(re.mT, within)
    else:
        h = matmul(concat([re, -im], axis=-2).mT, concat([within, turn], axis=-2))
    return cut(reshape(h, (*h.shape[:-2], chunks * inside)), 0, length, axis=-1)


def modal_state(u: EmberTensor, log_decay: EmberTensor, angle: EmberTensor | None, state: EmberTensor | None = None) -> EmberTensor:
    """The state after all inputs: state_T of the module's formula, plus p^T times the state before them.

    Args:
        u: (B, D, T), T >= 1. log_decay, angle: as in `modal_filter`.
        state: (B, D, S), or (B, D, S, 2) for complex poles; default zero.

    Returns: as `state`, in float32 or wider. Memory: S / 256 numbers an input.

    Raises ShapeError naming the argument, the shape that was expected and the one that came.
    """
    _check("modal_state", log_decay, angle, {"state": state})
    if u.ndim != 3 or u.shape[1] != log_decay.shape[0] or u.shape[2] == 0:
        raise ShapeError(f"modal_state: expected u of shape (batch, channels = {log_decay.shape[0]}, length >= 1), got {u.shape}")
    kind = state_dtype(u.dtype)
    (batch, channels, length), states = u.shape, log_decay.shape[1]
    log_decay, angle = log_decay.astype(kind), None if angle is None else angle.astype(kind)
    inside = min(CHUNK, length)
    chunks = -(-length // inside)
    padded = pad(u.astype(kind), ((0, 0), (0, 0), (chunks * inside - length, 0)))
    rows = reshape(padded, (batch, channels, chunks, inside))
    re, im = _powers(log_decay, angle, _range(inside - 1, -1, -1, u, kind))
    each = matmul(rows, (re if im is None else concat([re, im], axis=-2)).mT)       # (B, D, chunks, S or 2 S)
    parts = (each, None) if im is None else (cut(each, 0, states, axis=-1), cut(each, states, 2 * states, axis=-1))
    later = _powers(log_decay, angle, _range((chunks - 1) * inside, -1, -inside, u, kind))
    re, im = _times(parts, tuple(None if w is None else w.mT for w in later))
    found = _joined((total(re, axis=2), None if im is None else total(im, axis=2)))
    if state is None:
        return found
    whole = _powers(log_decay, angle, zeros((1,), kind, like=u) + float(length))
    return found + _joined(_times(_pair(state.astype(kind), angle), tuple(None if w is None else w[..., 0] for w in whole)))


def modal_response(state: EmberTensor, log_decay: EmberTensor, angle: EmberTensor | None, residues: EmberTensor,
                   length: int) -> EmberTensor:
    """What a state gives at the `length` positions after it, without new inputs: Re(sum_s R_s p_s^{t+1} state_s).

    Args:
        state: (B, D, S), or (B, D, S, 2) for complex poles. The others as in `modal_filter`, residues without leading axes.

    Returns: (B, D, length).
    """
    _check("modal_response", log_decay, angle, {"state": state, "residues": residues})
    once = _powers(log_decay, angle, zeros((1,), log_decay.dtype, like=state) + 1.0)
    first = _times(_pair(residues, angle), tuple(None if w is None else w[..., 0] for w in once))
    return modal_filter(log_decay, angle, _joined(_times(_pair(state.astype(log_decay.dtype), angle), first)), length)


def modal_step(u: EmberTensor, state: EmberTensor, log_decay: EmberTensor, angle: EmberTensor | None,
               residues: EmberTensor) -> tuple[EmberTensor, EmberTensor]:
    """One position: u (B, D) to (y (B, D), state), state <- p state + u, y = Re(sum_s R_s state_s)."""
    once = tuple(None if w is None else w[..., 0] for w in _powers(log_decay, angle, zeros((1,), log_decay.dtype, like=u) + 1.0))
    re, im = _times(_pair(state, angle), once)
    re = re + expand_dims(u, -1).astype(re.dtype)
    product = _times(_pair(residues, angle), (re, im))[0]
    return total(product, axis=-1).astype(u.dtype), _joined((re, im))
