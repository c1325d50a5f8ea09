"""Recurrences over time."""

from __future__ import annotations

import numpy as np

from ember_ml import ops
from ember_ml.ops.recurrence import cells
from ember_ml.ops.recurrence.delta_rule import unit_inverse
from ember_ml.ops.recurrence.linear_scan import linear_scan_grad
from ember_ml.ops.recurrence.selective_scan import selective_scan_grad, selective_scan_rows
from ember_ml.parity.cases.case import WIDENED, at_least_single, draws, row

real, ints = draws(9)


def _states(a, b, initial):
    h, out = initial, []
    for t in range(b.shape[1]):
        h = a[:, t] * h + b[:, t]
        out.append(h)
    return np.stack(out, 1)


def _backwards(g, g_final, a):
    """lam_t = g_t + a_{t+1} lam_{t+1} as the same recurrence, read from the end."""
    later = np.concatenate([a[:, 1:], np.ones_like(a[:, :1])], 1)
    return _states(later[:, ::-1], g[:, ::-1], g_final)[:, ::-1]


_DECAYS, _ROWS = real(2, 7, 3, low=-0.2, high=1.0), real(2, 7, 3)
row("linear_scan_rows", lambda a, b, h: ops.linear_scan(a, b, h)[0], [_DECAYS, _ROWS, real(2, 3)], _states)
row("linear_scan_rows", lambda a, b, h: ops.linear_scan(a, b, h)[1], [_DECAYS, _ROWS, real(2, 3)],
    lambda a, b, h: _states(a, b, h)[:, -1], label="last state", result=WIDENED)
row("linear_scan_grad", lambda g, last, a: linear_scan_grad(g, at_least_single(last), a, a * 2.0, at_least_single(last))[1],
    [_ROWS, real(2, 3), _DECAYS], _backwards, empty=(0, 1, 2))


def _selective(x, dt, A, B, C, D, h):
    y = np.empty_like(x)
    for t in range(x.shape[1]):
        h = np.exp(dt[:, t, :, None] * A) * h + (dt[:, t] * x[:, t])[..., None] * B[:, t, None]
        y[:, t] = (h * C[:, t, None]).sum(-1) + D * x[:, t]
    return y


row("selective_scan_rows", lambda x, *rest: selective_scan_rows(x, *map(at_least_single, rest))[0],
    [real(2, 5, 3), real(2, 5, 3, low=0.1, high=1.0), real(3, 2, low=-2.0, high=-0.1), real(2, 5, 2), real(2, 5, 2), real(3), real(2, 3, 2)],
    _selective, empty=(0, 1, 3, 4, 6))


def _selective_steps_grad(g, last, x, dt, A, B, C, D, h):
    """The gradient in dt."""
    states, lam, d_dt = [h], last, np.empty_like(x)
    for t in range(x.shape[1]):
        states.append(np.exp(dt[:, t, :, None] * A) * states[-1] + (dt[:, t] * x[:, t])[..., None] * B[:, t, None])
    for t in reversed(range(x.shape[1])):
        lam, decay = lam + g[:, t, :, None] * C[:, t, None], np.exp(dt[:, t, :, None] * A)
        d_dt[:, t] = (lam * (A * decay * states[t] + x[:, t, :, None] * B[:, t, None])).sum(-1)
        lam = decay * lam
    return d_dt


row("selective_scan_grad", lambda g, last, x, *rest: selective_scan_grad(g, at_least_single(last), x, *map(at_least_single, rest))[1],
    [real(2, 5, 3), real(2, 3, 2), real(2, 5, 3), real(2, 5, 3, low=0.1, high=1.0), real(3, 2, low=-2.0, high=-0.1), real(2, 5, 2),
     real(2, 5, 2), real(3), real(2, 3, 2)], _selective_steps_grad, result=WIDENED)
_BELOW = np.tril(np.ones((4, 4)), -1)
row("unit_inverse", lambda a: unit_inverse(ops.where(ops.tensor(_BELOW > 0, like=a), a, 0.0)), [real(2, 4, 4)],
    lambda a: np.linalg.inv(np.eye(4) - a * _BELOW), empty=(0,))
row("chunked_scan", lambda s, x, w: ops.over_chunks(
    lambda carry, xs, weights: ((carry[0] * weights[0] + xs[0].sum(axis=1),), (xs[0] * ops.expand_dims(carry[0], 1),)),
    (s,), (x,), (w,), chunk=3)[1][0], [real(2, 3), _ROWS, real(3)],
    lambda s, x, w: np.concatenate([x[:, :3] * s[:, None], x[:, 3:6] * (s * w + x[:, :3].sum(1))[:, None],
                                    x[:, 6:] * ((s * w + x[:, :3].sum(1)) * w + x[:, 3:6].sum(1))[:, None]], 1))


def _sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def _over_time(step, x, *state):
    out = []
    for t in range(x.shape[1]):
        state = step(x[:, t], *state)
        out.append(state[0])
    return np.stack(out, 1)


def _lstm_step(z, w, h, c):
    i, f, g, o = np.split(z + h @ w, 4, -1)
    c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
    return _sigmoid(o) * np.tanh(c), c


def _gru_step(z, w, inner, h):
    (r, u, n), (hr, hu, hn) = np.split(z, 3, -1), np.split(h @ w, 3, -1)
    n = np.tanh(n + _sigmoid(r + hr) * (hn + inner))
    return ((1 - _sigmoid(u + hu)) * n + _sigmoid(u + hu) * h,)


_SEQUENCE, _H = real(2, 5, 3), real(2, 4, low=-0.9, high=0.8)


def _cfc(x, w, f, h):
    out = []
    for t in range(x.shape[1]):
        a, b, rate, offset = np.split(np.tanh(x[:, t] @ w[:, :2].T + h @ w[:, 2:].T) @ f.T, 4, axis=1)
        s = 1 / (1 + np.exp(-rate - offset))
        h = np.tanh(a) * (1 - s) + s * np.tanh(b)
        out.append(h)
    return np.stack(out, 1)




def _ltc(x, sensory, w, v):
    def openness(v, w):
        return w * _sigmoid(v[:, :, None] * 2.0 - 0.5)

    out = []
    for t in range(x.shape[1]):
        of_x = openness(x[:, t], sensory)
        for _ in range(2):
            s = openness(v, w)
            v = (v + 0.5 * (0.3 + (of_x * -0.7).sum(1) + (s * 0.9).sum(1))) / (1.0 + 0.5 * (0.6 + of_x.sum(1) + s.sum(1) + 1e-8))
        out.append(v)
    return np.stack(out, 1)


def _ltc_op(x, sensory, w, v):
    one = [ops.ones((v.shape[1],), v.dtype, like=v)] * 3
    synapses = [(p * 0.0 + 2.0, p * 0.0 + 0.25, p, p * 0.0 + erev) for p, erev in ((sensory, -0.7), (w, 0.9))]
    return ops.ltc(x, *synapses, one[0], one[1] * 0.6, one[2] * 0.5, v, unfolds=2)[0]


row("ltc_rows", _ltc_op, [real(2, 4, 2), real(2, 3, low=0.1, high=0.9), real(3, 3, low=0.1, high=0.9), real(2, 3)], _ltc)
row("layered_scan_rows", lambda x, w, f, h: ops.cfc(x, [(w, None)], (f, None), h, activation="tanh", chunk=2)[0],
    [real(2, 5, 2), real(4, 5), real(12, 4), real(2, 3)], _cfc)
row("gated_scan_rows", lambda x, w, h, c: ops.gated_scan(cells.LSTM, x, ops.expand_dims(w, 0), (h, c), chunk=2)[0],
    [real(2, 5, 16), real(4, 16, low=-0.6, high=0.7), _H, _H * 0.7],
    lambda x, w, h, c: _over_time(lambda z, h, c: _lstm_step(z, w, h, c), x, h, c))
# cuDNN has a tanh and a sigmoid of its own, good to some 1e-6
row("rnn_rows", lambda *args: ops.rnn(*args)[0], [_SEQUENCE, real(4, 3), real(4, 4, low=-0.5, high=0.6), real(4), _H],
    lambda x, i, w, b, h: _over_time(lambda z, h: (np.tanh(z + h @ w.T),), x @ i.T + b, h), slack=6)
row("lstm_rows", lambda *args: ops.lstm(*args)[0],
    [_SEQUENCE, real(16, 3), real(16, 4, low=-0.5, high=0.6), real(16), _H, _H * 0.7],
    lambda x, i, w, b, h, c: _over_time(lambda z, h, c: _lstm_step(z, w.T, h, c), x @ i.T + b, h, c), slack=6)
row("gru_rows", lambda *args: ops.gru(*args)[0],
    [_SEQUENCE, real(12, 3), real(12, 4, low=-0.5, high=0.6), real(12), real(4), _H],
    lambda x, i, w, b, inner, h: _over_time(lambda z, h: _gru_step(z, w.T, inner, h), x @ i.T + b, h), slack=6)
