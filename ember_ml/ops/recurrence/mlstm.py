"""xLSTM's matrix memory: exponential input gate, normaliser, and a running maximum that keeps both in range.

    m_t = max(log f_t + m_{t-1}, i_t),  log f = log sigmoid of the forget gate
    C_t = e^{log f_t + m_{t-1} - m_t} C_{t-1} + e^{i_t - m_t} k_t v_t^T,   n likewise without v
    h_t = C_t^T q_t / (max(|n_t . q_t|, e^{-m_t}) + eps)

That is linear attention with one decay a head and one more value channel. h does not depend on m (but for eps, which is added in
m's scale), so m is a constant to the gradient.

Source: Beck et al. 2024, xLSTM: Extended Long Short-Term Memory, eq. 19 to 27 and appendix A.
"""

from __future__ import annotations

import math
from functools import partial

from ember_ml.autodiff.gradient import stop_gradient
from ember_ml.errors import ShapeError
from ember_ml.ops.activation import softplus
from ember_ml.ops.creation import zeros
from ember_ml.ops.elementwise import abs, exp, maximum, where
from ember_ml.ops.recurrence.checks import check_state, check_tensors, kept
from ember_ml.ops.recurrence.chunks import over_chunks
from ember_ml.ops.recurrence.cumulative import cummax, cummax_since, cumsum
from ember_ml.ops.recurrence.linear_attention import attend, check, sizes
from ember_ml.ops.recurrence.linear_scan import state_dtype
from ember_ml.ops.shape import concat, cut, expand_dims, reshape
from ember_ml.tensor import EmberTensor


def _segment(carry, xs, _weights, *, steps, eps):
    (memory, m), (q, k, v, i, f, *keep) = carry, xs
    log_f, earlier = -softplus(-f), expand_dims(m, 1)
    if f.shape[1] == 1 and not keep:
        largest = stop_gradient(maximum(log_f + earlier, i))
    else:
        # m_t - F_t is a running maximum, F the sum of log f, which a segment keeps short
        sums = cumsum(log_f, axis=1)
        if keep:                                         # there the state before is zero, with m = 0
            reset = stop_gradient(keep[0]) == 0.0
            rising = where(reset, maximum(i, log_f), i) - sums
            first, length = cut(rising, 0, 1, axis=1), rising.shape[1]
            first = where(cut(reset, 0, 1, axis=1), first, maximum(first, earlier))
            rising = concat([first, cut(rising, 1, length, axis=1)], axis=1)
            largest = stop_gradient(cummax_since(rising, reset[:, :, 0]) + sums)
        else:
            largest = stop_gradient(maximum(cummax(i - sums, axis=1), earlier) + sums)
        earlier = concat([earlier, cut(largest, 0, largest.shape[1] - 1, axis=1)], axis=1)
    g = expand_dims(log_f + earlier - largest, -1)
    if keep:
        g = where(expand_dims(reset, -1), -math.inf, g)
    weighted = k * expand_dims(exp(i - largest), -1)
    memory, o = attend(memory, q, weighted, concat([v, cut(v, 0, 1, axis=-1).ones_like()], axis=-1), g, steps)
    dv = v.shape[-1]
    size = maximum(abs(cut(o, dv, dv + 1, axis=-1)), expand_dims(exp(-largest), -1))
    last = reshape(cut(largest, largest.shape[1] - 1, largest.shape[1], axis=1), m.shape)
    return (memory, last), (cut(o, 0, dv, axis=-1) / (size + eps),)


def mlstm(q: EmberTensor, k: EmberTensor, v: EmberTensor, i: EmberTensor, f: EmberTensor, initial: tuple | None = None, *,
          eps: float = 1e-6, reset: EmberTensor | None = None, chunk: int = 64) -> tuple[EmberTensor, tuple[EmberTensor, EmberTensor]]:
    """(h, state) of the recurrence above.

    Args:
        q, k: (B, L, H, dk), L >= 1; the caller scales one of them by 1 / sqrt(dk). v: (B, L, H, dv).
        i, f: (B, L, H), the gates before exp and sigmoid.
        initial: the state, as returned; default zero, with m = 0.
        eps: added to the divisor. reset: bool (B, L): where true, the state is zero before the step.
        chunk: steps of a chunk, rounded up to a power of two.

    Returns: h (B, L, H, dv) in v's dtype, and the state: C with n as its last value channel (B, H, dk, dv + 1), and m (B, H), both in
    float32 or wider.

    Raises ShapeError naming the argument, the shape that was expected and the one that came.
    """
    check_tensors("mlstm", chunk=chunk, v=v, q=q, k=k, i=i, f=f)
    check("mlstm", q, k, v, None, v.shape[-1] + 1)
    (batch, length, heads, dv), dk = v.shape, k.shape[-1]
    for name, t in (("i", i), ("f", f)):
        if t.shape != v.shape[:3]:
            raise ShapeError(f"mlstm: expected {name} of shape {v.shape[:3]}, got {t.shape}")
    check_state("mlstm", initial, ((batch, heads, dk, dv + 1), (batch, heads)))
    kind = state_dtype(v.dtype)
    if initial is not None:
        memory, m = initial
    else:
        memory, m = zeros((batch, heads, dk, dv + 1), kind, like=v), zeros((batch, heads), kind, like=v)
    steps, segment = sizes(chunk, length, batch, heads, max(dk, dv))
    state, (h,) = over_chunks(partial(_segment, steps=steps, eps=eps), (memory.astype(kind), m.astype(kind)),
                              [*(t.astype(kind) for t in (q, k, v, i, f)), *kept("mlstm", reset, v, kind)],
                              chunk=segment)
    return h.astype(v.dtype), state
