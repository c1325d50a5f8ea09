"""Normalisation, losses, attention, and the update of an optimiser."""

from __future__ import annotations

import numpy as np

from ember_ml import ops
from ember_ml.ops.optimizer import adam_update, clip_norm
from ember_ml.parity.cases.case import WIDENED, at_least_single, draws, row

real, ints = draws(7)


def _layer_norm(x, w, b):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * w + b


row("layer_norm", lambda x, w, b: ops.layer_norm(x, w, b, eps=1e-5), [real(2, 3, 4), real(4), real(4)], _layer_norm, empty=(0,))
row("layer_norm", lambda x, w: ops.layer_norm(x, w, None, eps=1e-5), [real(2, 3, 4), real(4)], lambda x, w: _layer_norm(x, w, 0.0), label="no bias")
row("layer_norm", lambda x: ops.layer_norm(x, None, None, eps=1e-5), [real(2, 3, 4)], lambda x: _layer_norm(x, 1.0, 0.0), label="plain")
row("rms_norm", lambda x, w: ops.rms_norm(x, w, eps=1e-5), [real(2, 3, 4), real(4)],
    lambda x, w: x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * w, empty=(0,))
row("cross_entropy_rows", ops.cross_entropy, [real(2, 3, 5), ints(2, 3)],
    lambda x, i: np.log(np.exp(x).sum(-1)) - np.take_along_axis(x, i[..., None], -1)[..., 0], empty=(0, 1))


def _head_loss(x, w, i, b=0.0, cap=None):
    z = x @ w.T + b
    z = z if cap is None else cap * np.tanh(z / cap)
    return np.log(np.exp(z).sum(-1)) - np.take_along_axis(z, i[..., None], -1)[..., 0]


row("linear_cross_entropy_rows", lambda x, w, i: ops.linear_cross_entropy(x, w, i, chunk=2), [real(5, 3), real(7, 3), ints(5, high=7)], _head_loss, empty=(0, 2), result=WIDENED)
row("linear_cross_entropy_rows", lambda x, w, i, b: ops.linear_cross_entropy(x, w, i, b, cap=1.5, chunk=4),
    [real(2, 3, 4), real(5, 4), ints(2, 3), real(5)], lambda *a: _head_loss(*a, cap=1.5), label="bias and cap", result=WIDENED)


def _attention(q, k, v, causal=False, window=None, mask=0.0, scale=None):
    """Query by query and head by head; a key head serves the neighbouring query heads."""
    out = np.zeros((*q.shape[:-1], v.shape[-1]))
    length, keys = q.shape[-2], k.shape[-2]
    mask = np.broadcast_to(mask, (*q.shape[:-1], keys))
    for at in np.ndindex(q.shape[:-1]):
        *lead, h, i = at
        head, place = (*lead, h * k.shape[-3] // q.shape[-3]), i + keys - length
        seen = [j for j in range(keys) if not causal or place - (window or keys) < j <= place]
        scores = k[head][seen] @ q[at] * (scale or q.shape[-1] ** -0.5) + mask[at][seen]
        p = np.exp(scores - scores.max())
        out[at] = p / p.sum() @ v[head][seen]
    return out


_Q, _K, _BIAS = real(2, 4, 7, 3), real(2, 2, 9, 3), real(4, 7, 9)
for _label, _kw, _inputs in [
        ("plain", {}, [_Q, _K, real(2, 2, 9, 5)]), ("causal", {"causal": True}, [_Q, _Q * 0.7 + 0.1, real(2, 4, 7, 3)]),
        ("more keys than queries", {"causal": True, "scale": 0.4}, [_Q, _K, _K * 0.5]),
        ("window", {"causal": True, "window": 2}, [_Q, real(2, 2, 7, 3), real(2, 2, 7, 3)]),
        ("short window of a longer past", {"causal": True, "window": 3}, [_Q, _K, _K * 0.5]),
        ("wide window", {"causal": True, "window": 5}, [_Q, real(2, 4, 7, 3), real(2, 4, 7, 3)]),
        ("more axes", {"causal": True}, [real(2, 2, 2, 5, 3), real(2, 2, 1, 5, 3), real(2, 2, 1, 5, 3)])]:
    row("attention_rows", lambda q, k, v, kw=_kw: ops.scaled_dot_product_attention(q, k, v, **kw), _inputs,
        lambda q, k, v, kw=_kw: _attention(q, k, v, **kw), label=_label, empty=(0, 1, 2))
row("attention_rows", lambda q, k, v, m: ops.scaled_dot_product_attention(q, k, v, causal=True, mask=m), [_Q, _K, _K * 0.5, _BIAS],
    lambda q, k, v, m: _attention(q, k, v, causal=True, mask=m), label="causal, added mask")
row("attention_rows", lambda q, k, v, m: ops.scaled_dot_product_attention(q, k, v, mask=m > 0.0, causal=True, window=6),
    [_Q, _K, _K * 0.5, np.abs(_BIAS) * np.where(np.arange(9) % 3 == 1, -1, 1)],
    lambda q, k, v, m: _attention(q, k, v, mask=np.where(m > 0, 0.0, -1e30), causal=True, window=6), (0, 1, 2), label="window, bool mask")


def _rope(x, at, rates, interleaved):
    """Pairs as complex numbers times e^(i position rate)."""
    n = len(rates) // 2
    a, b = (x[..., 0:2 * n:2], x[..., 1:2 * n:2]) if interleaved else (x[..., :n], x[..., n:2 * n])
    z = (a + 1j * b) * np.exp(1j * at[:, None, :, None] * (rates[1::2] if interleaved else rates[n:]))
    turned = np.stack([z.real, z.imag], -1).reshape(*a.shape[:-1], -1) if interleaved else np.concatenate([z.real, z.imag], -1)
    return np.concatenate([turned, x[..., 2 * n:]], -1)


_RATES = np.array([0.5, 0.125, 0.0625])
for _form, _signed in ((False, np.concatenate([-_RATES, _RATES])), (True, np.stack([-_RATES, _RATES], 1).reshape(-1))):
    for _at in (np.array([[0, 1, 2, 3]]), np.array([[2, 7, 1, 0], [5, 6, 3, 9]])):
        row("rope", lambda x, at, form=_form, r=_signed: ops.rope(x, at, ops.tensor(r, at_least_single(x).dtype, like=x), interleaved=form),
            [real(2, 3, 4, 8), _at], lambda x, at, form=_form, r=_signed: _rope(x, at, r, form),
            label=f"{'neighbours' if _form else 'halves'}, {len(_at)} rows of positions", empty=(0,) if len(_at) == 1 else (0, 1))


def _adam(p, g, m, v):
    m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
    return p - 0.1 * (m / (1 - 0.9 ** 3) / (np.sqrt(v / (1 - 0.99 ** 3)) + 1e-8) + 0.5 * p)


def _adam_call(p, g, m, v):
    rate, t = (ops.full((), value, p.dtype, like=p) for value in (0.1, 3.0))
    return adam_update(rate, t, p, g, m, v, beta1=0.9, beta2=0.99, eps=1e-8, decays=(0.5,))[0]


_P, _G = real(3, 4), real(3, 4)
row("adam_update", _adam_call, [_P, _G, _P + _G, real(3, 4, low=0.3, high=2.5)], _adam, (), empty=(0, 1, 2, 3),
    single="what an optimiser keeps is float32 or wider")


def _norm(*gradients):
    return np.sqrt(sum((np.abs(g) ** 2).sum() for g in gradients))


for _limit, _label in ((0.5, "clipped"), (1e3, "left alone")):
    row("clip_norm", lambda a, b, limit=_limit: clip_norm(a, b, limit=limit)[1], [_G, real(5)],
        lambda a, b, limit=_limit: b * min(1.0, limit / (_norm(a, b) + 1e-12)), (), label=_label, also="c", empty=(1,))
row("clip_norm", lambda a, b: clip_norm(a, b, limit=1.0)[2], [_G, real(5)], _norm, (), label="norm", also="c",
    result={"float16": "float32", "bfloat16": "float32", "complex64": "float32", "complex128": "float64"})
