"""Mixtures of experts."""

from __future__ import annotations

import numpy as np

from ember_ml import ops
from ember_ml.ops.moe.combine import moe_combine_grad, row_indices
from ember_ml.ops.moe.mlp import expert_activation, expert_activation_grad, moe_down, moe_mlp_grad, moe_mlp_host, moe_mlp_routed, moe_up
from ember_ml.ops.moe.route import softmax_choice, softmax_weights, softmax_weights_grad
from ember_ml.parity.cases.case import WIDENED, at_least_single, draws, row

real, ints = draws(8)

_INVERSE = np.array([[4, 0], [5, 2], [1, 3]], np.int32)
row("moe_combine_rows", ops.moe_combine, [real(6, 5), _INVERSE, real(3, 2)],
    lambda e, i, w: np.einsum("tkd,tk->td", e[i], w), empty=(1, 2))
row("moe_combine_grad", lambda g, e, i, w: moe_combine_grad(g, e, i, at_least_single(w))[1], [real(3, 5), real(6, 5), _INVERSE, real(3, 2)],
    lambda g, e, i, w: np.einsum("td,tkd->tk", g, e[i]), (), result=WIDENED, empty=(0, 2, 3))
row("row_indices", lambda i: row_indices(i, rows=5), [np.arange(-9, 9, dtype=np.int32)],
    lambda i: np.clip(np.where(i < 0, i + 5, i), -1, 5).astype(np.int32), (), empty=(0,))
_IDS = np.array([[2, 0], [3, 2], [0, 4], [2, 3], [4, 4]], np.int32)               # 4 of 4 experts: none; expert 1 has nothing


def _plan(i):
    return ops.moe_plan(i, 4, complete=False)


def _by_expert(ids, experts=4):
    """The pairs of each expert, in order."""
    return [np.flatnonzero(ids.reshape(-1) == e) for e in range(experts)]


def _grouped(x, w, ids):
    y = np.zeros((ids.size, w.shape[1]))
    for pairs, matrix in zip(_by_expert(ids), w):
        y[pairs] = x[pairs // 2] @ matrix.T
    return y.reshape(*ids.shape, -1)


def _pairs(x, i):
    plan = _plan(i)
    return ops.moe_gather(x, plan), plan


row("moe_plan_rows", lambda i: ops.take(_plan(i).order, _plan(i).inverse), [_IDS],
    lambda i: np.arange(10, dtype=np.int32).reshape(5, 2), (), label="round trip", empty=(0,))
row("moe_plan_rows", lambda i: ops.moe_plan(i, 4, complete=False, block=1).offsets, [_IDS],
    lambda i: np.array([0, 2, 2, 5, 7], np.int32), (), label="offsets")
row("moe_gather_rows", lambda x, i: ops.take(ops.moe_gather(x, _plan(i)), _plan(i).inverse), [real(5, 3), _IDS],
    lambda x, i: np.stack([x, x], 1), empty=(0, 1))
row("grouped_rows", lambda x, w, i: ops.take(ops.grouped_linear(_pairs(x, i)[0], w, _pairs(x, i)[1]), _plan(i).inverse),
    [real(5, 3), real(4, 2, 3), _IDS], _grouped, empty=(0, 2))
row("grouped_outer_rows", lambda a, b, i: ops.grouped_outer(_pairs(a, i)[0], _pairs(b, i)[0], _plan(i)), [real(5, 3), real(5, 2), _IDS],
    lambda a, b, i: np.stack([a[p // 2].T @ b[p // 2] for p in _by_expert(i)]))
row("grouped_outer_rows", lambda a, b, i: ops.grouped_outer(_pairs(a, i)[0], _pairs(b, i)[0], _plan(i)),
    [np.zeros((0, 3)), np.zeros((0, 2)), _IDS[:0]], lambda a, b, i: np.zeros((4, 3, 2)), (), label="of nothing")


def _silu(x):
    return x / (1.0 + np.exp(-x))


row("expert_activation", lambda h: expert_activation(h, activation="silu", glu=True), [real(5, 6)],
    lambda h: _silu(h[:, :3]) * h[:, 3:], empty=(0,))
row("expert_activation_grad", lambda g, h, w: expert_activation_grad(g, h, at_least_single(w))[2], [real(5, 3), real(5, 6), real(5, 1)],
    lambda g, h, w: (g * _silu(h[:, :3]) * h[:, 3:]).sum(1), (), result=WIDENED, empty=(0, 1, 2))


def _experts(x, w, w1, b1, w2, b2, ids):
    y = np.zeros((len(x), w2.shape[1]))
    for e, pairs in enumerate(_by_expert(ids)):
        h = x[pairs // 2] @ w1[e].T + b1[e]
        np.add.at(y, pairs // 2, w.reshape(-1)[pairs, None] * ((_silu(h[:, :4]) * h[:, 4:]) @ w2[e].T + b2[e]))
    return y


_EXPERTS = [real(5, 3), real(5, 2, low=0.1, high=0.9), real(4, 8, 3), real(4, 8), real(4, 3, 4), real(4, 3), _IDS]


_MLP = {"activation": "silu", "glu": True}


def _host_form(x, w, w1, b1, w2, b2, i):
    plan = _plan(i)
    return moe_mlp_host(x, at_least_single(w), w1, b1, w2, b2, *plan[:3], **_MLP, block=plan.block, complete=False, keep=True)


def _up(x, w1, b1, i):
    plan = _plan(i)
    return moe_up(x, w1, b1, *plan[:3], block=plan.block, complete=False)


def _down(x, w, w1, b1, w2, b2, i):
    plan = _plan(i)
    return moe_down(_up(x, w1, b1, i), at_least_single(w), w2, b2, *plan[:3], **_MLP, block=plan.block, complete=False)


def _hidden(x, w1, b1, ids):
    h = np.zeros((ids.size, w1.shape[1]))
    for e, pairs in enumerate(_by_expert(ids)):
        h[pairs] = x[pairs // 2] @ w1[e].T + b1[e]
    return h.reshape(*ids.shape, -1)


row("moe_up", lambda x, w1, b1, i: ops.take(_up(x, w1, b1, i), _plan(i).inverse), [_EXPERTS[0], *_EXPERTS[2:4], _IDS], _hidden, empty=(0, 3))
row("moe_down", _down, _EXPERTS, _experts, empty=(0, 1, 6))
row("moe_mlp_host", lambda *args: _host_form(*args)[0], _EXPERTS, _experts, empty=(0, 1, 6))
_ALL = _IDS % 4                                              # every slot has an expert
row("moe_mlp_routed", lambda x, w, *given: moe_mlp_routed(x, at_least_single(w), given[-1], *given[:-1], **_MLP), [*_EXPERTS[:-1], _ALL],
    _experts, (), label="with biases", empty=(0, 1, 6))
for _tokens in (1, 5):
    row("moe_mlp_routed", lambda x, w, w1, w2, i: moe_mlp_routed(x, at_least_single(w), i, w1, None, w2, None, **_MLP),
        [real(_tokens, 8), real(_tokens, 2, low=0.1, high=0.9), real(4, 8, 8), real(4, 8, 4), _ALL[:_tokens]],
        lambda x, w, w1, w2, i: _experts(x, w, w1, np.zeros((4, 8)), w2, np.zeros((4, 8)), i), (), label=f"{_tokens} tokens")
row("moe_mlp_grad", lambda *a: _gradient_of_weights(*a), _EXPERTS, lambda *a: _slope_of_weights(*a), (0, 2, 3, 4, 5), empty=(0, 1, 6), result=WIDENED)


def _gradient_of_weights(x, w, w1, b1, w2, b2, i):
    """moe_mlp_grad's gradient of the weights for the output's gradient x, so with D = 3 for both."""
    plan, h = _plan(i), _host_form(x, w, w1, b1, w2, b2, i)[1]
    return moe_mlp_grad(x, h, x, at_least_single(w), w1, b1, w2, b2, *plan[:3], **_MLP, block=plan.block, complete=False)[1]


def _slope_of_weights(x, w, w1, b1, w2, b2, ids):
    """The output is linear in the weights: one pair at a time."""
    out = np.zeros_like(w)
    for t, k in np.ndindex(*w.shape):
        one = np.zeros_like(w)
        one[t, k] = 1.0
        out[t, k] = (_experts(x, one, w1, b1, w2, b2, ids) * x).sum()
    return out


def _softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _share(z, i):
    w = np.take_along_axis(_softmax(z), i, -1)
    return 1.5 * w / (w.sum(-1, keepdims=True) + 0.1)


_LOGITS, _CHOSEN, _HOW = real(5, 4), np.array([[2, 0], [3, 1], [0, 1], [2, 3], [1, 0]], np.int32), {"normalize": True, "eps": 0.1, "scale": 1.5}
row("softmax_choice_rows", lambda z, b: softmax_choice(at_least_single(z), at_least_single(b), k=2), [_LOGITS, real(4)],
    lambda z, b: np.argsort(-(_softmax(z) + b), axis=-1, kind="stable")[:, :2].astype(np.int32), (), empty=(0,))
row("softmax_weights_rows", lambda z, i: softmax_weights(at_least_single(z), i, **_HOW)[0], [_LOGITS, _CHOSEN], _share, result=WIDENED,
    empty=(0, 1))
row("softmax_weights_rows", lambda z, i: softmax_weights(at_least_single(z), i, **_HOW)[1], [_LOGITS, _CHOSEN], lambda z, i: _softmax(z),
    result=WIDENED, label="scores", empty=(0, 1))
row("softmax_weights_grad", lambda g, s, i: softmax_weights_grad(at_least_single(g), at_least_single(s) * 0, i, at_least_single(s),
                                                                normalize=False, eps=0.0, scale=1.5), [real(5, 2), real(5, 4), _CHOSEN],
    lambda g, s, i: _slope_of_scores(g, s, i), (), empty=(0, 1, 2), result=WIDENED)


def _slope_of_scores(g, s, ids):
    """Of 1.5 sum_k g_k softmax(z)[ids_k] in z, where softmax(z) is s: s_e (d_e - sum_i s_i d_i)."""
    d = np.zeros_like(s)
    np.put_along_axis(d, ids, 1.5 * g, axis=1)
    return s * (d - (s * d).sum(1, keepdims=True))
