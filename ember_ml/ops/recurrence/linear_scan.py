"""The linear recurrence with an elementwise state: h_t = a_t h_{t-1} + b_t.

The composite works in two levels: time is cut into about sqrt(L) blocks; all blocks walk their steps side by side from
a zero state; then the states between blocks follow one from the other. That is 2 sqrt(L) rounds of elementwise work instead of L, with
products of decays only, never quotients: a decay of zero or one that underflows is exact.

The gradient is the same recurrence backwards, from the output that is there anyhow:
lam_t = g_t + conj(a_{t+1}) lam_{t+1}, db = lam, da_t = lam_t conj(h_{t-1}).

Source: Blelloch 1990, Prefix Sums and Their Applications; Martin and Cundy 2018, Parallelizing Linear Recurrent
Neural Nets Over Sequence Length.
"""

from __future__ import annotations

from math import isqrt

from ember_ml.autodiff import tape
from ember_ml.errors import ShapeError
from ember_ml.kernels import LINEAR_SCAN, LINEAR_SCAN_GRAD
from ember_ml.ops.creation import zeros
from ember_ml.ops.declare import op
from ember_ml.ops.elementwise import conj, exp, where
from ember_ml.ops.recurrence.checks import check_reset, check_tensors
from ember_ml.ops.shape import broadcast_to, concat, cut, expand_dims, flip, pad, reshape, split, squeeze
from ember_ml.tensor import EmberTensor
from ember_ml.tensor.common import dtypes as dt


def state_dtype(dtype):
    """The dtype in which a recurrence keeps its state: at least float32."""
    return dt.float32 if dtype.bits < 32 else dtype


def _walk(a, b, initial):
    """All states (B, L, D) in two levels, in the state's dtype, and the last one (B, D)."""
    batch, length, width = b.shape
    steps = max(1, isqrt(length - 1) + 1)
    blocks = -(-length // steps)
    spare = blocks * steps - length
    if spare:
        a, b = (pad(x, ((0, 0), (0, spare), (0, 0))) for x in (a, b))
    a, b = (reshape(x, (batch, blocks, steps, width)) for x in (a, b))
    a_steps, b_steps = split(a, steps, axis=2), split(b, steps, axis=2)
    states, decays = [b_steps[0]], [a_steps[0]]
    for a_t, b_t in zip(a_steps[1:], b_steps[1:]):
        states.append(a_t * states[-1] + b_t)
        decays.append(a_t * decays[-1])
    carry = [reshape(initial, (batch, 1, 1, width))]
    last_a, last_b = split(decays[-1], blocks, axis=1), split(states[-1], blocks, axis=1)
    for decay, state in zip(last_a[:-1], last_b[:-1]):
        carry.append(decay * carry[-1] + state)
    h = concat(states, axis=2) + concat(decays, axis=2) * concat(carry, axis=1)
    # computed by itself: a slice of h would keep all of h in memory as long as somebody holds the last state
    at = steps - 1 - spare
    final = cut(decays[at], blocks - 1, blocks, axis=1) * carry[-1] + cut(states[at], blocks - 1, blocks, axis=1)
    return cut(reshape(h, (batch, blocks * steps, width)), 0, length, axis=1), reshape(final, initial.shape)


def _grad_of_grad(g, _out, *args):
    return tape.pull(lambda xs: linear_scan_grad.op.body(*xs), list(args), list(g))


@op(vjp=_grad_of_grad, owns_gradient=True, kernel=LINEAR_SCAN_GRAD)
def linear_scan_grad(g, g_final, a, h, initial):
    """(da, db, d_initial) of `linear_scan_rows` for the cotangents g (B, L, D) and g_final (B, D)."""
    length, kind = g.shape[1], state_dtype(g.dtype)
    a_wide = conj(a).astype(kind)
    decays = concat([cut(a_wide, 1, length, axis=1), cut(a_wide, 0, 1, axis=1).ones_like()], axis=1)
    lam = flip(_walk(flip(decays, axis=1), flip(g.astype(kind), axis=1), g_final)[0], axis=1)
    before = concat([expand_dims(initial, 1), cut(h, 0, length - 1, axis=1).astype(kind)], axis=1)
    first = reshape(cut(a_wide, 0, 1, axis=1) * cut(lam, 0, 1, axis=1), initial.shape)
    return (lam * conj(before)).astype(a.dtype), lam.astype(g.dtype), first


def _rule(g, out, a, _b, initial):
    return linear_scan_grad(g[0], g[1], a, out[0], initial)


@op(public="linear_scan", vjp=_rule, owns_gradient=True, kernel=LINEAR_SCAN)
def linear_scan_rows(a, b, initial):
    """Native form of `linear_scan`: a and b (B, L, D) of one dtype, initial (B, D) in the state's dtype."""
    kind = state_dtype(b.dtype)
    h, final = _walk(a.astype(kind), b.astype(kind), initial)
    return h.astype(b.dtype), final


def linear_scan(a: EmberTensor, b: EmberTensor, initial: EmberTensor | None = None, *,
                reset: EmberTensor | None = None, log_decay: bool = False) -> tuple[EmberTensor, EmberTensor]:
    """All states of h_t = a_t h_{t-1} + b_t, elementwise, with time on axis 1.

    Args:
        a: decays, broadcasting to b's shape; real or complex.
        b: (B, L, ...), the inputs, floating point or complex, L >= 1.
        initial: (B, ...), the state before the first step; default zero.
        reset: bool (B, L): where true, the state is forgotten before the step (the start of a new segment).
        log_decay: `a` holds log(a): decays nearer to 1 than a float can tell (log a = -1e-9) keep their digits in the
            gradient, and -inf is a decay of zero.

    Returns:
        (h, final): h (B, L, ...) in the common dtype of a and b; final (B, ...), the last state, float32 where h is half precision.
        The state itself is float32 (or wider) in between.

    Raises ShapeError for shapes that do not fit, UnsupportedDtype for integers.
    """
    check_tensors("linear_scan", complex_too=True, b=b, a=a, initial=initial)
    if b.ndim < 2:
        raise ShapeError(f"linear_scan: expected b of shape (batch, length >= 1, ...), got {b.shape}")
    want = b.shape[:1] + b.shape[2:]
    if initial is not None and initial.shape != want:
        raise ShapeError(f"linear_scan: expected initial of shape {want}, got {initial.shape}")
    check_reset("linear_scan", reset, b.shape[:2])
    if a.ndim > b.ndim or any(n not in (1, m) for n, m in zip(a.shape[::-1], b.shape[::-1])):
        raise ShapeError(f"linear_scan: expected a of shape {b.shape}, or one that broadcasts to it, got {a.shape}")
    common = dt.promote(a.dtype, b.dtype)
    a = exp(a) if log_decay else a
    a, b = broadcast_to(a.astype(common), b.shape), b.astype(common)
    if reset is not None:
        a = where(reshape(reset, b.shape[:2] + (1,) * (b.ndim - 2)), a.zeros_like(), a)
    kind = state_dtype(common)
    batch, length = b.shape[:2]
    if length == 1 and initial is not None:
        h = a * expand_dims(initial.astype(kind), 1) + b
        return h.astype(common), squeeze(h, 1)
    rows = (batch, length, -1)
    first = zeros(want, kind, like=b) if initial is None else initial
    h, final = linear_scan_rows(reshape(a, rows), reshape(b, rows), reshape(first.astype(kind), (batch, -1)))
    return reshape(h, b.shape), reshape(final, want)
