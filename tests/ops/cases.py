"""One row an op: how it is called, on what, and what NumPy says in float64.

`expect` is the definition in NumPy. Inputs stay away from ties and from the borders of domains, where engines rightly differ. Ops that
are only an inner form of a public function are called through that function.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ember_ml import ops
from ember_ml.ops import index, shape
from ember_ml.ops.convolve import convolve_grad, convolve_rows
from ember_ml.ops.fftconv import fftconv_grad
from ember_ml.ops.moe.combine import moe_combine_grad
from ember_ml.ops.moe.mlp import expert_activation, expert_activation_grad, moe_down, moe_mlp_grad, moe_mlp_host, moe_up
from ember_ml.ops.optimizer import adam_update
from ember_ml.ops.recurrence import cells
from ember_ml.ops.recurrence.delta_rule import unit_inverse
from ember_ml.ops.recurrence.linear_scan import linear_scan_grad

RNG = np.random.default_rng(7)
ERF = np.vectorize(math.erf, otypes=[float])


@dataclass
class Case:
    """name: of the op that the row covers. call: public function of tensors. inputs: float64 or integer arrays.
    expect: the definition. grads: which inputs are differentiated; none where the op is constant or has no gradient."""

    name: str
    call: Callable
    inputs: list
    expect: Callable
    grads: tuple = field(default=None)
    label: str = ""

    def __post_init__(self):
        if self.grads is None:
            self.grads = tuple(i for i, a in enumerate(self.inputs) if a.dtype.kind == "f")

    @property
    def id(self) -> str:
        return f"{self.name} {self.label}".strip()


def real(*shape, low=-2.0, high=2.0):
    """Distinct values in a range, in random order."""
    n = math.prod(shape)
    return RNG.permutation(np.linspace(low, high, n) if n > 1 else np.full(n, 0.3 * (low + 2 * high))).reshape(shape)


def ints(*shape, high=5):
    return RNG.integers(0, high, shape).astype(np.int32)


X, Y, P = real(3, 4), real(3, 4) + 0.013, real(3, 4, low=0.3, high=2.5)
STRIDED = real(4, 3, low=-1.1, high=2.3).T
CASES: list[Case] = []


def row(name, call, inputs, expect, grads=None, label=""):
    CASES.append(Case(name, call, inputs, expect, grads, label))


for _name, _expect in {"add": np.add, "subtract": np.subtract, "multiply": np.multiply, "maximum": np.maximum,
                       "minimum": np.minimum}.items():
    row(_name, getattr(ops, _name), [X, Y], _expect)
    row(_name, getattr(ops, _name), [X, real(4, low=-1.7, high=1.9)], _expect, label="broadcast")
    row(_name, getattr(ops, _name), [STRIDED, real(3, 1, low=-0.8, high=1.3)], _expect, label="strided")
    row(_name, getattr(ops, _name), [np.array(0.7), np.array(-0.2)], _expect, label="scalars")
    row(_name, getattr(ops, _name), [np.zeros((0, 4)), real(4)], _expect, label="empty")
row("atan2", ops.atan2, [X, Y], np.arctan2)
row("atan2", ops.atan2, [X, real(4, low=-1.7, high=1.9)], np.arctan2, label="broadcast")
row("divide", ops.divide, [X, P], np.divide)
row("divide", lambda x: 2.0 / x, [P], lambda x: 2.0 / x, label="number first")
row("pow", ops.pow, [P, Y], np.power)
row("pow", lambda x: x ** 3, [X], lambda x: x ** 3, label="number second")
row("floor_divide", ops.floor_divide, [X, P], np.floor_divide, ())
row("remainder", ops.remainder, [real(3, 4, low=0.11, high=2.9), real(3, 4, low=3.1, high=4.0)], np.remainder)
row("remainder", ops.remainder, [np.array([-2.6, 7.3, -0.4]), np.array([1.5, 2.2, -3.0])], np.remainder, label="signs")
for _name, _x, _expect in [
        ("negative", X, np.negative), ("abs", X, np.abs), ("square", X, np.square), ("exp", X, np.exp), ("exp2", X, np.exp2), ("expm1", X, np.expm1),
        ("sin", X, np.sin), ("cos", X, np.cos), ("tanh", X, np.tanh), ("sqrt", P, np.sqrt), ("log", P, np.log),
        ("log1p", P, np.log1p), ("rsqrt", P, lambda x: x ** -0.5), ("erf", X, ERF), ("conj", X, np.conj), ("real", X, np.real),
        ("sigmoid", X, lambda x: 1 / (1 + np.exp(-x))), ("relu", X + 0.01, lambda x: np.maximum(x, 0)),
        ("silu", X, lambda x: x / (1 + np.exp(-x))), ("softplus", X, lambda x: np.log1p(np.exp(x))),
        ("gelu", X, lambda x: 0.5 * x * (1 + ERF(x / math.sqrt(2)))),
        ("gelu_tanh", X, lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3))))]:
    row(_name, getattr(ops, _name), [_x], _expect)
    row(_name, getattr(ops, _name), [_x[:0]], _expect, label="empty")
    row(_name, getattr(ops, _name), [np.array(0.37)], _expect, label="scalar")
row("erfinv", lambda x: ops.erf(ops.erfinv(x)), [real(7, low=-0.99, high=0.99)], lambda x: x, label="inverse of erf")
for _name, _expect in {"sign": np.sign, "floor": np.floor, "round": np.round, "isfinite": np.isfinite}.items():
    row(_name, getattr(ops, _name), [X], _expect, ())
row("imag", lambda x: ops.imag(ops.complex(x, x * 2.0)), [X], lambda x: 2 * x)
row("complex", lambda x, y: ops.real(ops.complex(x, y) * ops.conj(ops.complex(y, x))), [X, Y],
    lambda x, y: ((x + 1j * y) * np.conj(y + 1j * x)).real)
for _name, _expect in {"equal": np.equal, "not_equal": np.not_equal, "less": np.less, "less_equal": np.less_equal,
                       "greater": np.greater, "greater_equal": np.greater_equal}.items():
    row(_name, getattr(ops, _name), [ints(3, 4), ints(4)], _expect, ())
for _name, _expect in {"logical_and": np.logical_and, "logical_or": np.logical_or}.items():
    row(_name, lambda x, y, f=getattr(ops, _name): f(x > 1, y > 2), [ints(3, 4), ints(4)],
        lambda x, y, f=_expect: f(x > 1, y > 2), ())
row("logical_not", lambda x: ~(x > 1), [ints(5)], lambda x: ~(x > 1), ())
row("where", lambda c, x, y: ops.where(c > 2, x, y), [ints(3, 4), X, Y], lambda c, x, y: np.where(c > 2, x, y))
row("where", lambda c, x: ops.where(c > 2, x, 0.0), [ints(3, 4), X], lambda c, x: np.where(c > 2, x, 0.0), label="number")
row("clip", lambda x: ops.clip(x, low=-0.9, high=1.1), [X], lambda x: np.clip(x, -0.9, 1.1))
row("astype", lambda x: x.astype("float32") * 1.0, [X], lambda x: x)

for _name, _expect in {"sum": np.sum, "mean": np.mean, "max": np.max, "min": np.min, "var": np.var}.items():
    for _label, _kw in {"all": {}, "last": {"axis": -1}, "kept": {"axis": (0, 1), "keepdims": True}}.items():
        row(_name, lambda x, f=getattr(ops, _name), kw=_kw: f(x, **kw), [STRIDED], lambda x, f=_expect, kw=_kw: f(x, **kw), label=_label)
row("sum", ops.sum, [ints(4, 5)], lambda x: np.sum(x), (), label="integers")
row("argmax", lambda x: ops.argmax(x, axis=1), [X], lambda x: np.argmax(x, 1), ())
row("all", lambda x: ops.all(x > 0, axis=0), [ints(3, 4)], lambda x: np.all(x > 0, 0), ())
row("any", lambda x: ops.any(x > 3), [ints(3, 4)], lambda x: np.any(x > 3), ())
row("logsumexp", lambda x: ops.logsumexp(x * 40.0, axis=1), [X],
    lambda x: np.log(np.exp(40 * x - 80).sum(1)) + 80)
row("cumsum", lambda x: ops.cumsum(x, axis=1), [X], lambda x: np.cumsum(x, 1))
row("softmax", lambda x: ops.softmax(x, axis=0), [X], lambda x: np.exp(x) / np.exp(x).sum(0))
row("log_softmax", lambda x: ops.log_softmax(x), [X], lambda x: x - np.log(np.exp(x).sum(-1, keepdims=True)))

row("reshape", lambda x: ops.reshape(x, (2, -1)), [STRIDED], lambda x: x.reshape(2, -1))
row("permute_dims", lambda x: ops.permute_dims(x, (2, 0, 1)), [real(2, 3, 4)], lambda x: x.transpose(2, 0, 1))
row("broadcast_to", lambda x: ops.broadcast_to(x, (2, 3, 4)), [real(3, 1)], lambda x: np.broadcast_to(x, (2, 3, 4)))
row("concat_all", lambda x, y: ops.concat([x, y], axis=1), [X, real(3, 2)], lambda x, y: np.concatenate([x, y], 1))
row("split_all", lambda x: ops.split(x, (1, 3), axis=1)[1] * ops.split(x, 4, axis=1)[2], [X], lambda x: x[:, 1:] * x[:, 2:3])
row("cut", lambda x: shape.cut(x, 1, 3, axis=1), [X], lambda x: x[:, 1:3])
row("pad", lambda x: ops.pad(x, ((1, 0), (2, 3))), [X], lambda x: np.pad(x, ((1, 0), (2, 3))))
row("flip", lambda x: ops.flip(x, axis=1), [X], lambda x: x[:, ::-1])
row("matmul", ops.matmul, [X, real(4, 5)], np.matmul)
row("matmul", ops.matmul, [real(2, 3, 4), real(4, 5)], np.matmul, label="batch with matrix")
row("matmul", ops.matmul, [real(2, 1, 3, 4), real(5, 4, 2)], np.matmul, label="batches broadcast")
row("matmul", ops.matmul, [real(4), real(2, 4, 3)], np.matmul, label="vector first")
row("matmul", ops.matmul, [real(2, 3, 4), real(4)], np.matmul, label="vector second")
row("matmul", ops.matmul, [real(4), real(4)], np.matmul, label="vectors")
row("matmul", ops.matmul, [ints(3, 4), ints(4, 2)], np.matmul, label="integers")
row("addmm", ops.addmm, [real(3, 5), X, real(4, 5)], lambda c, x, y: c + x @ y)
row("addmm", ops.addmm, [real(5), real(2, 3, 4), real(4, 5)], lambda c, x, y: c + x @ y, label="c broadcasts")

ROWS, WIDE = ints(2, 3), ints(3, 2, high=4)
row("take_axis", lambda x, i: ops.take(x, i, axis=0), [real(5, 2), ROWS], lambda x, i: x[i])
row("take_axis", lambda x, i: ops.take(x, i, axis=1), [real(2, 5, 3), ROWS], lambda x, i: x[:, i], label="middle")


def _scatter(x, i, u):
    out = x.copy()
    np.add.at(out, i, u)
    return out


row("scatter_add", lambda x, i, u: ops.scatter_add(x, i, u), [real(5, 2), ROWS, real(2, 3, 2)], _scatter)
row("gather_along", lambda x, i: ops.take_along_axis(x, i, 1), [X, WIDE], lambda x, i: np.take_along_axis(x, i, 1))


def _put(x, i, u):
    out = x.copy()
    np.add.at(out, (np.arange(3)[:, None], i), u)
    return out


row("put_add_along_axis", lambda x, i, u: ops.put_add_along_axis(x, i, u, axis=1), [X, WIDE, real(3, 2)], _put)
row("get_at", lambda x, i: x[i, 1:, None], [real(5, 3), ints(2)], lambda x, i: x[i, 1:, None])


def _assign(x, v):
    x = x * 1.0
    x[1:, ::2] = v
    return x * x


row("set_at", _assign, [X, real(2)], _assign)
row("add_at", lambda x, v: index.add_at(x, v, index=(slice(None), 1)), [X, real(3)],
    lambda x, v: x + np.eye(4)[1] * v[:, None])
row("argsort", lambda x: ops.argsort(x), [ints(4, 6)], lambda x: np.argsort(x, -1, kind="stable"), ())
row("argsort", lambda x: ops.argsort(x, axis=0, descending=True), [ints(6, 3, high=3)],
    lambda x: np.argsort(-x, 0, kind="stable"), (), label="descending, ties")

for _n in (8, 7):
    row("rfft", lambda x, n=_n: ops.real(ops.rfft(x, n=n)) + 2.0 * ops.imag(ops.rfft(x, n=n)), [real(2, 6)],
        lambda x, n=_n: np.fft.rfft(x, n).real + 2 * np.fft.rfft(x, n).imag, label=f"n = {_n}")
    row("irfft", lambda x, y, n=_n: ops.irfft(ops.complex(x, y), n=n), [real(2, 5), real(2, 5)],
        lambda x, y, n=_n: np.fft.irfft(x + 1j * y, n), label=f"n = {_n}")
    row("fft", lambda x, y, n=_n: ops.real(ops.fft(ops.complex(x, y), n=n) * 1j), [real(2, 6), real(2, 6)],
        lambda x, y, n=_n: (np.fft.fft(x + 1j * y, n) * 1j).real, label=f"n = {_n}")
    row("ifft", lambda x, y, n=_n: ops.imag(ops.ifft(ops.complex(x, y), n=n, axis=0)), [real(6, 2), real(6, 2)],
        lambda x, y, n=_n: np.fft.ifft(x + 1j * y, n, axis=0).imag, label=f"n = {_n}")


def _layer_norm(x, w, b):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * w + b


row("layer_norm", lambda x, w, b: ops.layer_norm(x, w, b, eps=1e-5), [real(2, 3, 4), real(4), real(4)], _layer_norm)
row("layer_norm", lambda x, w: ops.layer_norm(x, w, None, eps=1e-5), [real(2, 3, 4), real(4)], lambda x, w: _layer_norm(x, w, 0.0), label="no bias")
row("layer_norm", lambda x: ops.layer_norm(x, None, None, eps=1e-5), [real(2, 3, 4)], lambda x: _layer_norm(x, 1.0, 0.0), label="plain")
row("rms_norm", lambda x, w: ops.rms_norm(x, w, eps=1e-5), [real(2, 3, 4), real(4)],
    lambda x, w: x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * w)
row("cross_entropy_rows", ops.cross_entropy, [real(2, 3, 5), ints(2, 3)],
    lambda x, i: np.log(np.exp(x).sum(-1)) - np.take_along_axis(x, i[..., None], -1)[..., 0])


def _head_loss(x, w, i, b=0.0, cap=None):
    z = x @ w.T + b
    z = z if cap is None else cap * np.tanh(z / cap)
    return np.log(np.exp(z).sum(-1)) - np.take_along_axis(z, i[..., None], -1)[..., 0]


row("linear_cross_entropy_rows", lambda x, w, i: ops.linear_cross_entropy(x, w, i, chunk=2), [real(5, 3), real(7, 3), ints(5, high=7)], _head_loss)
row("linear_cross_entropy_rows", lambda x, w, i, b: ops.linear_cross_entropy(x, w, i, b, cap=1.5, chunk=4),
    [real(2, 3, 4), real(5, 4), ints(2, 3), real(5)], lambda *a: _head_loss(*a, cap=1.5), label="bias and cap")


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
        lambda q, k, v, kw=_kw: _attention(q, k, v, **kw), label=_label)
row("attention_rows", lambda q, k, v, m: ops.scaled_dot_product_attention(q, k, v, causal=True, mask=m), [_Q, _K, _K * 0.5, _BIAS],
    lambda q, k, v, m: _attention(q, k, v, causal=True, mask=m), label="causal, added mask")
row("attention_rows", lambda q, k, v, m: ops.scaled_dot_product_attention(q, k, v, mask=m > 0.0, causal=True, window=6),
    [_Q, _K, _K * 0.5, np.abs(_BIAS) * np.where(np.arange(9) % 3 == 1, -1, 1)],
    lambda q, k, v, m: _attention(q, k, v, mask=np.where(m > 0, 0.0, -1e30), causal=True, window=6), (0, 1, 2), label="window, bool mask")


def _short(x, w, b):
    taps = w.shape[1]
    wide = np.pad(x, ((0, 0), (0, 0), (taps - 1, 0)))
    return sum(wide[:, :, j:j + x.shape[2]] * w[:, j, None] for j in range(taps)) + b[:, None]


def _conv1d(x, w, b=None, stride=1, padding=(0, 0), dilation=1, groups=1):
    x = np.pad(x, ((0, 0), (0, 0), padding))
    per, out = w.shape[1], w.shape[0] // groups
    places = range(0, x.shape[2] - dilation * (w.shape[2] - 1), stride)
    y = np.stack([[[sum(w[o, c, j] * x[n, o // out * per + c, t + j * dilation] for c in range(per) for j in range(w.shape[2]))
                    for t in places] for o in range(w.shape[0])] for n in range(len(x))])
    return y if b is None else y + b[:, None]


for _label, _w, _kw in [("plain", real(4, 3, 2), {}), ("centred", real(4, 3, 3), {"padding": (1, 1)}), ("causal", real(4, 3, 3), {"padding": (2, 0)}),
                        ("strided", real(4, 3, 3), {"stride": 2, "padding": (1, 2)}), ("dilated", real(4, 3, 2), {"dilation": 3}),
                        ("grouped", real(6, 1, 2), {"groups": 3, "stride": 3})]:
    row("conv1d_rows", lambda x, w, b, kw=_kw: ops.conv1d(x, w, b, **kw), [real(2, 3, 7), _w, real(_w.shape[0])],
        lambda x, w, b, kw=_kw: _conv1d(x, w, b, **kw), label=_label)
row("depthwise_rows", ops.short_conv, [real(2, 4, 6), real(4, 3), real(4)], _short)
row("depthwise_rows", ops.short_conv, [real(2, 2, 18), real(2, 14), real(2)], _short, label="many taps")
row("depthwise_rows", ops.short_conv, [real(2, 4, 1), real(4, 3), real(4)], _short, label="one step")
row("fftconv_rows", lambda u, k: ops.fftconv(u, k), [real(2, 3, 9), real(3, 9)],
    lambda u, k: np.stack([np.stack([np.convolve(u[b, c], k[c])[:9] for c in range(3)]) for b in range(2)]))

def _both_ways(x, k, D, k_reverse):
    C, L, each = x.shape[1], x.shape[2], x.shape[1] // k.shape[0]
    y = [np.convolve(x[b, c], k[c // each])[:L] + np.convolve(x[b, c, ::-1], k_reverse[c // each])[:L][::-1] + D[c] * x[b, c]
         for b in range(len(x)) for c in range(C)]
    return np.reshape(y, x.shape)


row("convolve_rows", convolve_rows, [real(2, 4, 7), real(2, 5), real(4), real(2, 3)], _both_ways)


def _lagged(g, x, k):
    return np.array([[sum(g[b, c, t] * x[b, c, t - j] for b in range(2) for t in range(j, 5)) for j in range(3)] for c in range(2)])


row("convolve_grad", lambda g, x, k: convolve_grad(g, x, k)[1], [real(2, 2, 5), real(2, 2, 5), real(2, 3)], _lagged)
row("fftconv_grad", lambda g, x, k: fftconv_grad(g, x, k)[1], [real(2, 2, 5), real(2, 2, 5), real(2, 3)], _lagged)
_INVERSE = np.array([[4, 0], [5, 2], [1, 3]], np.int32)
row("moe_combine_rows", ops.moe_combine, [real(6, 5), _INVERSE, real(3, 2)],
    lambda e, i, w: np.einsum("tkd,tk->td", e[i], w))
row("moe_combine_grad", lambda g, e, i, w: moe_combine_grad(g, e, i, w)[1], [real(3, 5), real(6, 5), _INVERSE, real(3, 2)],
    lambda g, e, i, w: np.einsum("td,tkd->tk", g, e[i]), ())
row("topk_indices", lambda x: ops.topk(x, 3)[0], [X], lambda x: -np.sort(-x, -1)[:, :3], ())
row("topk_indices", lambda x: ops.topk(x * 0.5, 3)[1], [ints(9, 6, high=3).astype(float)],
    lambda x: np.argsort(-x, -1, kind="stable")[:, :3].astype(np.int32), (), label="ties")
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
    lambda i: np.arange(10, dtype=np.int32).reshape(5, 2), (), label="round trip")
row("moe_plan_rows", lambda i: ops.moe_plan(i, 4, complete=False, block=1).offsets, [_IDS],
    lambda i: np.array([0, 2, 2, 5, 7], np.int32), (), label="offsets")
row("moe_gather_rows", lambda x, i: ops.take(ops.moe_gather(x, _plan(i)), _plan(i).inverse), [real(5, 3), _IDS],
    lambda x, i: np.stack([x, x], 1))
row("grouped_rows", lambda x, w, i: ops.take(ops.grouped_linear(_pairs(x, i)[0], w, _pairs(x, i)[1]), _plan(i).inverse),
    [real(5, 3), real(4, 2, 3), _IDS], _grouped)
row("grouped_outer_rows", lambda a, b, i: ops.grouped_outer(_pairs(a, i)[0], _pairs(b, i)[0], _plan(i)), [real(5, 3), real(5, 2), _IDS],
    lambda a, b, i: np.stack([a[p // 2].T @ b[p // 2] for p in _by_expert(i)]))


def _silu(x):
    return x / (1.0 + np.exp(-x))


row("expert_activation", lambda h: expert_activation(h, activation="silu", glu=True), [real(5, 6)],
    lambda h: _silu(h[:, :3]) * h[:, 3:])
row("expert_activation_grad", lambda g, h, w: expert_activation_grad(g, h, w)[2], [real(5, 3), real(5, 6), real(5, 1)],
    lambda g, h, w: (g * _silu(h[:, :3]) * h[:, 3:]).sum(1), ())


def _experts(x, w, w1, b1, w2, b2, ids):
    y = np.zeros((5, w2.shape[1]))
    for e, pairs in enumerate(_by_expert(ids)):
        h = x[pairs // 2] @ w1[e].T + b1[e]
        np.add.at(y, pairs // 2, w.reshape(-1)[pairs, None] * ((_silu(h[:, :4]) * h[:, 4:]) @ w2[e].T + b2[e]))
    return y


_EXPERTS = [real(5, 3), real(5, 2, low=0.1, high=0.9), real(4, 8, 3), real(4, 8), real(4, 3, 4), real(4, 3), _IDS]


_MLP = {"activation": "silu", "glu": True}


def _host_form(*args):
    plan = _plan(args[-1])
    return moe_mlp_host(*args[:-1], *plan[:3], **_MLP, block=plan.block, complete=False, keep=True)


def _up(x, w1, b1, i):
    plan = _plan(i)
    return moe_up(x, w1, b1, *plan[:3], block=plan.block, complete=False)


def _down(x, w, w1, b1, w2, b2, i):
    plan = _plan(i)
    return moe_down(_up(x, w1, b1, i), w, w2, b2, *plan[:3], **_MLP, block=plan.block, complete=False)


def _hidden(x, w1, b1, ids):
    h = np.zeros((ids.size, w1.shape[1]))
    for e, pairs in enumerate(_by_expert(ids)):
        h[pairs] = x[pairs // 2] @ w1[e].T + b1[e]
    return h.reshape(*ids.shape, -1)


row("moe_up", lambda x, w1, b1, i: ops.take(_up(x, w1, b1, i), _plan(i).inverse), [_EXPERTS[0], *_EXPERTS[2:4], _IDS], _hidden)
row("moe_down", _down, _EXPERTS, _experts)
row("moe_mlp_host", lambda *args: _host_form(*args)[0], _EXPERTS, _experts)
row("moe_mlp_grad", lambda *a: _gradient_of_weights(*a), _EXPERTS, lambda *a: _slope_of_weights(*a), ())


def _gradient_of_weights(x, w, w1, b1, w2, b2, i):
    """moe_mlp_grad's gradient of the weights for the output's gradient x, so with D = 3 for both."""
    plan, h = _plan(i), _host_form(x, w, w1, b1, w2, b2, i)[1]
    return moe_mlp_grad(x, h, x, w, w1, b1, w2, b2, *plan[:3], **_MLP, block=plan.block, complete=False)[1]


def _slope_of_weights(x, w, w1, b1, w2, b2, ids):
    """The output is linear in the weights: one pair at a time."""
    out = np.zeros_like(w)
    for t, k in np.ndindex(*w.shape):
        one = np.zeros_like(w)
        one[t, k] = 1.0
        out[t, k] = (_experts(x, one, w1, b1, w2, b2, ids) * x).sum()
    return out


_WAVES = real(3, 9, low=-3.0, high=2.0)
for _axis in (0, 1):
    row("cummax", lambda x, axis=_axis: ops.cummax(x, axis=axis), [_WAVES], lambda x, axis=_axis: np.maximum.accumulate(x, axis), label=f"axis {_axis}")
    row("cumlogsumexp", lambda x, axis=_axis: ops.cumlogsumexp(x, axis=axis), [_WAVES], lambda x, axis=_axis: np.logaddexp.accumulate(x, axis), label=f"axis {_axis}")
row("cumlogsumexp", lambda x: ops.cumlogsumexp(x * 50.0, axis=-1), [_WAVES], lambda x: np.logaddexp.accumulate(x * 50.0, -1), label="large")


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
    lambda a, b, h: _states(a, b, h)[:, -1], label="last state")
row("linear_scan_grad", lambda g, last, a: linear_scan_grad(g, last, a, a * 2.0, last)[1], [_ROWS, real(2, 3), _DECAYS], _backwards)
_BELOW = np.tril(np.ones((4, 4)), -1)
row("unit_inverse", lambda a: unit_inverse(ops.where(ops.tensor(_BELOW > 0, like=a), a, 0.0)), [real(2, 4, 4)],
    lambda a: np.linalg.inv(np.eye(4) - a * _BELOW))
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
row("rnn_rows", lambda *args: ops.rnn(*args)[0], [_SEQUENCE, real(4, 3), real(4, 4, low=-0.5, high=0.6), real(4), _H],
    lambda x, i, w, b, h: _over_time(lambda z, h: (np.tanh(z + h @ w.T),), x @ i.T + b, h))
row("lstm_rows", lambda *args: ops.lstm(*args)[0],
    [_SEQUENCE, real(16, 3), real(16, 4, low=-0.5, high=0.6), real(16), _H, _H * 0.7],
    lambda x, i, w, b, h, c: _over_time(lambda z, h, c: _lstm_step(z, w.T, h, c), x @ i.T + b, h, c))
row("gru_rows", lambda *args: ops.gru(*args)[0],
    [_SEQUENCE, real(12, 3), real(12, 4, low=-0.5, high=0.6), real(12), real(4), _H],
    lambda x, i, w, b, inner, h: _over_time(lambda z, h: _gru_step(z, w.T, inner, h), x @ i.T + b, h))


def _adam(p, g, m, v):
    m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
    return p - 0.1 * (m / (1 - 0.9 ** 3) / (np.sqrt(v / (1 - 0.99 ** 3)) + 1e-8) + 0.5 * p)


def _adam_call(p, g, m, v):
    rate, t = (ops.full((), value, like=p) for value in (0.1, 3.0))
    return adam_update(rate, t, p, g, m, v, beta1=0.9, beta2=0.99, eps=1e-8, decays=(0.5,))[0]


row("adam_update", _adam_call, [X, Y, X + Y, P], _adam, ())

#: ops whose results are random or keys: tests/ops/test_threefry.py holds them to MLX's own generator, to the bit
ELSEWHERE = {"random_bits", "fold"}
