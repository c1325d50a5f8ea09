"""Mamba's selective scan: a diagonal state per channel whose decay and input depend on the token.

    h_t[d, n] = exp(dt_t[d] A[d, n]) h_{t-1}[d, n] + dt_t[d] x_t[d] B_t[n]
    y_t[d]    = sum_n C_t[n] h_t[d, n] + D[d] x_t[d]

The states are N times larger than the inputs and exist for one chunk at a time, in the gradient too.

Source: Gu and Dao 2023, Mamba: Linear-Time Sequence Modeling with Selective State Spaces, eq. 2 and algorithm 2.
"""

from __future__ import annotations

import math

from ember_ml.autodiff import tape
from ember_ml.autodiff.gradient import stop_gradient
from ember_ml.errors import ShapeError
from ember_ml.kernels import SELECTIVE_SCAN, SELECTIVE_SCAN_GRAD
from ember_ml.ops.creation import zeros
from ember_ml.ops.declare import op
from ember_ml.ops.elementwise import exp2
from ember_ml.ops.kernel import launches
from ember_ml.ops.recurrence.checks import check_tensors, kept
from ember_ml.ops.recurrence.chunks import over_chunks
from ember_ml.ops.recurrence.linear_scan import linear_scan_rows, state_dtype
from ember_ml.ops.reduce import sum as total
from ember_ml.ops.shape import expand_dims, reshape, squeeze, swap_axes
from ember_ml.tensor import EmberTensor

LOG2_E = 1.0 / math.log(2.0)

#: numbers of the expanded state that a chunk may hold, unless `chunk` says otherwise: 2 MiB in float32
WORKSPACE = 1 << 19


def _chunk(carry, xs, weights):
    """Channels come last in here, so that every product and sum runs along them. A is (N, D), times log2(e)."""
    (state,), (x, dt, B, C, *keep), (A, *skip) = carry, xs, weights
    batch, steps, channels = x.shape
    decay = exp2(expand_dims(dt, 2) * A)
    if keep:
        decay = decay * expand_dims(stop_gradient(keep[0]), -1)
    inputs = expand_dims(dt * x, 2) * expand_dims(B, -1)
    if steps == 1:
        h = decay * expand_dims(state, 1) + inputs
        final = squeeze(h, 1)
    else:
        width = A.shape[0] * channels
        rows = (batch, steps, width)
        h, final = linear_scan_rows(reshape(decay, rows), reshape(inputs, rows), reshape(state, (batch, width)))
        h, final = reshape(h, (batch, steps, A.shape[0], channels)), reshape(final, state.shape)
    y = total(h * expand_dims(C, -1), axis=2)
    return (final,), (y + x * skip[0] if skip else y,)


@op(kernel=SELECTIVE_SCAN_GRAD)
def selective_scan_grad(g, g_last, x, dt, A, B, C, D, initial):
    """Gradients of `selective_scan_rows` in x, dt, A, B, C, D and initial for the cotangents of y and of the last state."""
    return tuple(tape.pull(lambda xs: list(selective_scan_rows.op.body(*xs)), [x, dt, A, B, C, D, initial], [g, g_last]))


def _rule(g, _out, *inputs):
    return selective_scan_grad(*g, *inputs)


@op(public="selective_scan", vjp=_rule, owns_gradient=True, kernel=SELECTIVE_SCAN)
def selective_scan_rows(x, dt, A, B, C, D, initial):
    """Native form of `selective_scan` with all there is, for engines with its kernel. All but x are in the dtype of the computation."""
    kind, width = dt.dtype, A.shape[1]
    chunk = max(1, min(x.shape[1], WORKSPACE // max(1, x.shape[0] * x.shape[2] * width)))
    (final,), (y,) = over_chunks(_chunk, (swap_axes(initial),), [x.astype(kind), dt, B, C], [swap_axes(A) * LOG2_E, D], chunk)
    return y.astype(x.dtype), swap_axes(final)


def selective_scan(x: EmberTensor, dt: EmberTensor, A: EmberTensor, B: EmberTensor, C: EmberTensor,
                   D: EmberTensor | None = None, initial: EmberTensor | None = None, *,
                   reset: EmberTensor | None = None, chunk: int | None = None) -> tuple[EmberTensor, EmberTensor]:
    """(y, final state) of the recurrence above.

    Args:
        x: (B, L, D), float32, float64, float16 or bfloat16, L >= 1.
        dt: (B, L, D), step sizes, positive (after their softplus).
        A: (D, N), negative.
        B, C: (B, L, N).
        D: (D,), skip.
        initial: (B, D, N), the state before the first step; default zero.
        reset: bool (B, L): where true, the state is forgotten before the step.
        chunk: steps whose states are held at once; default as many as 2^19 numbers allow.

    Returns: y (B, L, D) in x's dtype and the last state (B, D, N); the computation is in float32 or wider.

    Raises ShapeError naming the argument, the shape that was expected and the one that came.
    """
    check_tensors("selective_scan", chunk=chunk, x=x, dt=dt, A=A, B=B, C=C, D=D, initial=initial)
    if x.ndim != 3 or A.ndim != 2:
        raise ShapeError("selective_scan: expected x (batch, length >= 1, channels) and A (channels, state), got "
                         f"{x.shape} and {A.shape}")
    batch, length, channels = x.shape
    width = A.shape[1]
    for name, t, shape in (("dt", dt, x.shape), ("A", A, (channels, width)), ("B", B, (batch, length, width)),
                           ("C", C, (batch, length, width)), ("D", D, (channels,)),
                           ("initial", initial, (batch, channels, width))):
        if t is not None and t.shape != shape:
            raise ShapeError(f"selective_scan: expected {name} of shape {shape}, got {t.shape}")
    kind = state_dtype(x.dtype)
    if reset is None and chunk is None and launches(x, "selective_scan"):
        D = zeros((channels,), kind, like=x) if D is None else D
        initial = zeros((batch, channels, width), kind, like=x) if initial is None else initial
        return selective_scan_rows(x, *(t.astype(kind) for t in (dt, A, B, C, D, initial)))
    first = zeros((batch, width, channels), kind, like=x) if initial is None else swap_axes(initial.astype(kind))
    chunk = chunk or max(1, min(length, WORKSPACE // max(1, batch * channels * width)))
    xs = [*(t.astype(kind) for t in (x, dt, B, C)), *kept("selective_scan", reset, x, kind)]
    weights = [swap_axes(A.astype(kind)) * LOG2_E, *([] if D is None else [D.astype(kind)])]
    (final,), (y,) = over_chunks(_chunk, (first,), xs, weights, chunk)
    return y.astype(x.dtype), swap_axes(final)
