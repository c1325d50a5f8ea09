"""Mixture of experts on NumPy: a loop over experts, whose rows are in order.

An expert's rows go through the whole perceptron, a few hundred at a time, so that the hidden rows stay in the cache; results are
written where they belong, and nothing is padded. `build` has what CuPy shares.
"""

from __future__ import annotations

import math

import numpy as np

from ember_ml.backend.numpy.special import erf

#: rows that go through an expert at a time: their hidden part stays in the cache, and a matrix product of them is no slower
CHUNK = 512

#: rows that all elementwise passes of a gradient go through at a time, so that these stay in the cache, too
_PASS = 128


def _wide(x):
    return x if x.dtype.itemsize >= 4 else x.astype("float32")


def spans(ends: list[int]) -> list[tuple[int, int, int]]:
    """(expert, first row, row after the last) of each expert that has rows, from the offsets."""
    return [(e, lo, hi) for e, (lo, hi) in enumerate(zip(ends, ends[1:])) if hi > lo]


def groups(ends: list[int]) -> list[list[tuple[int, int, int]]]:
    """Spans that are worked on together: neighbours of at most CHUNK rows in all, or one larger expert."""
    together = []
    for span in spans(ends):
        if together and span[2] - together[-1][0][1] <= CHUNK:
            together[-1].append(span)
        else:
            together.append([span])
    return together


def tiles(group: list[tuple[int, int, int]]) -> list[tuple[int, int, list]]:
    """(first row, row after the last, spans) of parts of a group that are not much longer than CHUNK rows."""
    if len(group) > 1:
        return [(group[0][1], group[-1][2], group)]
    (e, first, last), = group
    return [(lo, min(lo + CHUNK, last), [(e, lo, min(lo + CHUNK, last))]) for lo in range(first, last, CHUNK)]


def build(xp) -> dict:
    """The grouped matrix products on an array module."""

    def grouped_rows(x, w, offsets, *, block, complete):
        kind, x, w = x.dtype, _wide(x), _wide(w)
        y = xp.empty((x.shape[0], w.shape[1]), x.dtype)
        for e, lo, hi in spans(offsets.tolist()):
            xp.matmul(x[lo:hi], w[e].T, out=y[lo:hi])
        y[int(offsets[-1]):] = 0
        return y.astype(kind, copy=False)

    def grouped_outer_rows(a, b, offsets, *, block, complete):
        kind, a, b = a.dtype, _wide(a), _wide(b)
        c = xp.empty((offsets.shape[0] - 1, a.shape[1], b.shape[1]), a.dtype)
        ends = offsets.tolist()
        for e, (lo, hi) in enumerate(zip(ends, ends[1:])):
            xp.matmul(a[lo:hi].T, b[lo:hi], out=c[e])
        return c.astype(kind, copy=False)

    return {"grouped_rows": grouped_rows, "grouped_outer_rows": grouped_outer_rows}


def moe_plan_rows(ids, *, experts, block, rows, last):
    if block != 1:
        raise ValueError(f"NumPy's plans have block 1, got {block}")
    flat = ids.reshape(-1)                                 # in range: the op has checked
    narrow = flat.astype(np.uint16) if experts < 2 ** 16 else flat         # stable sorting of 16 bits is a radix sort
    order = np.argsort(narrow, kind="stable").astype(np.int32)
    inverse = np.empty_like(order)
    inverse[order] = np.arange(order.size, dtype=np.int32)
    offsets = np.zeros(experts + 1, np.int32)
    np.cumsum(np.bincount(flat, minlength=experts)[:experts], out=offsets[1:])
    return order, inverse.reshape(ids.shape), offsets


def moe_combine_rows(expert_out, inverse, weights):
    wide = _wide(expert_out)
    y = np.zeros((inverse.shape[0], expert_out.shape[1]), wide.dtype)
    for start in range(0, len(y), CHUNK):
        part = slice(start, start + CHUNK)
        for k in range(inverse.shape[1]):
            rows = np.take(wide, inverse[part, k], axis=0)
            rows *= weights[part, k, None]
            y[part] += rows
    return y.astype(expert_out.dtype, copy=False)


def _sigmoid(z):
    """(1 + tanh(z / 2)) / 2, which cannot overflow."""
    half = z.dtype.type(0.5)
    s = np.multiply(z, half)
    np.tanh(s, out=s)
    s += 1
    s *= half
    return s


def _silu(z):
    s = np.negative(z)
    with np.errstate(over="ignore"):
        np.exp(s, out=s)
    s += 1
    return np.divide(z, s, out=s)


def _silu_slope(z):
    s = _sigmoid(z)
    a = z * s
    slope = 1 - s
    slope *= a
    slope += s
    return a, slope


def _swiglu_backward(da, gate, up, a, d_gate, d_up):
    """Of a = silu(gate) up: fills a and the gradients for da in as few passes as NumPy lets one.

    d_gate = da (up s + a (1 - s)) = da (s (up - a) + a), s = sigmoid(gate).
    """
    for start in range(0, len(da), _PASS):
        i = slice(start, start + _PASS)
        s = _sigmoid(gate[i])
        act = np.multiply(gate[i], s)
        np.multiply(act, up[i], out=a[i])
        np.multiply(act, da[i], out=d_up[i])
        np.subtract(up[i], a[i], out=act)
        act *= s
        act += a[i]
        np.multiply(act, da[i], out=d_gate[i])


def _tanh_slope(z):
    a = np.tanh(z)
    return a, 1 - a * a


def _sigmoid_slope(z):
    a = _sigmoid(z)
    return a, a * (1 - a)


def _gelu_slope(z):
    phi = 0.5 * (1 + erf(z * z.dtype.type(math.sqrt(0.5))))
    return z * phi, phi + z * np.exp(-0.5 * z * z) / z.dtype.type(math.sqrt(2 * math.pi))


def _gelu_tanh_slope(z):
    c = z.dtype.type(math.sqrt(2 / math.pi))
    square = z * z
    t = np.tanh(c * z * (1 + 0.044715 * square))
    return 0.5 * z * (1 + t), 0.5 * (1 + t) + 0.5 * z * (1 - t * t) * c * (1 + 3 * 0.044715 * square)


#: name -> (value, value and slope)
_ACTIVATIONS = {
    "identity": (lambda z: z, lambda z: (z, np.ones_like(z))),
    "relu": (lambda z: np.maximum(z, 0), lambda z: (np.maximum(z, 0), (z > 0).astype(z.dtype))),
    "tanh": (np.tanh, _tanh_slope), "sigmoid": (_sigmoid, _sigmoid_slope), "silu": (_silu, _silu_slope),
    "gelu": (lambda z: _gelu_slope(z)[0], _gelu_slope), "gelu_tanh": (lambda z: _gelu_tanh_slope(z)[0], _gelu_tanh_slope),
}


def moe_mlp_host(x, weights, w1, b1, w2, b2, order, inverse, offsets, *, activation, glu, block, complete, keep):
    kind, x, w1, w2 = x.dtype, _wide(x), _wide(w1), _wide(w2)
    act, inner, ends = _ACTIVATIONS[activation][0], w2.shape[2], offsets.tolist()
    hidden = np.empty((order.size if keep else min(CHUNK, order.size), w1.shape[1]), x.dtype)
    tokens = order // max(inverse.shape[1], 1)
    out = np.empty((order.size, w2.shape[1]), x.dtype)
    for lo, hi, parts in (tile for group in groups(ends) for tile in tiles(group)):
        xs, h = x[tokens[lo:hi]], hidden[lo:hi] if keep else hidden[:hi - lo]
        for e, first, last in parts:
            np.matmul(xs[first - lo:last - lo], w1[e].T, out=h[first - lo:last - lo])
            if b1 is not None:
                h[first - lo:last - lo] += b1[e]
        a = act(h[:, :inner])
        if glu:
            a = np.multiply(a, h[:, inner:], out=a if a.base is None else None)
        for e, first, last in parts:
            np.matmul(a[first - lo:last - lo], w2[e].T, out=out[first:last])
            if b2 is not None:
                out[first:last] += b2[e]
    out[ends[-1]:] = 0
    hidden = hidden if keep else hidden[:0]
    return moe_combine_rows(out, inverse, weights).astype(kind, copy=False), hidden.astype(kind, copy=False)


def moe_mlp_grad(g, h, x, weights, w1, b1, w2, b2, order, inverse, offsets, *, activation, glu, block, complete):
    kind, g, h, x, w1, w2 = x.dtype, *map(_wide, (g, h, x, w1, w2))
    inner, ends = w2.shape[2], offsets.tolist()
    d_w1, d_w2 = (np.empty(w.shape, w.dtype) for w in (w1, w2))
    d_b1, d_b2 = (np.zeros((0,) if b is None else b.shape, x.dtype) for b in (b1, b2))
    d_rows, d_weights = np.empty((order.size, x.shape[1]), x.dtype), np.zeros(order.size, weights.dtype)
    row_weights, tokens = weights.reshape(-1)[order, None], order // max(inverse.shape[1], 1)
    for e in np.flatnonzero(np.diff(offsets) == 0):
        d_w1[e] = d_w2[e] = 0
    together = groups(ends)
    most = max((group[-1][2] - group[0][1] for group in together), default=0)
    wide_a, wide_dh = (np.empty((most, width), x.dtype) for width in (inner, w1.shape[1]))     # one piece of memory for all groups
    for group in together:                                 # all without the rows' weights, which come in on the narrow side
        begin, end = group[0][1], group[-1][2]
        a, dh = wide_a[:end - begin], wide_dh[:end - begin]
        gs, xs, w = g[tokens[begin:end]], x[tokens[begin:end]], row_weights[begin:end]
        for lo, hi, parts in tiles(group):
            here, da = slice(lo - begin, hi - begin), np.empty((hi - lo, inner), x.dtype)
            for e, first, last in parts:
                np.matmul(gs[first - begin:last - begin], w2[e], out=da[first - lo:last - lo])
            _activation_backward(da, h[lo:hi], a[here], dh[here], activation, glu)
            d_weights[lo:hi] = np.einsum("rf,rf->r", a[here], da)
            for e, first, last in parts:
                np.matmul(dh[first - begin:last - begin], w1[e], out=d_rows[first:last])
        for e, first, last in group:
            mine = slice(first - begin, last - begin)
            if b1 is not None:
                np.matmul(w[mine, 0], dh[mine], out=d_b1[e])
            if b2 is not None:
                d_weights[first:last] += gs[mine] @ _wide(b2[e])
                np.matmul(w[mine, 0], gs[mine], out=d_b2[e])
        xs *= w
        gs *= w
        for e, first, last in group:
            mine = slice(first - begin, last - begin)
            np.matmul(dh[mine].T, xs[mine], out=d_w1[e])
            np.matmul(gs[mine].T, a[mine], out=d_w2[e])
    d_rows[ends[-1]:] = 0
    d_x = moe_combine_rows(d_rows, inverse, weights)
    narrow = [d.astype(kind, copy=False) for d in (d_x, d_w1, d_b1, d_w2, d_b2)]
    return narrow[0], d_weights[inverse], *narrow[1:]


def _activation_backward(da, h, a, dh, activation, glu):
    """Fills the activations a of h, and dh with their gradients for da."""
    inner = a.shape[1]
    if glu and activation == "silu":
        return _swiglu_backward(da, h[:, :inner], h[:, inner:], a, dh[:, :inner], dh[:, inner:])
    act, slope = _ACTIVATIONS[activation][1](h[:, :inner])
    if glu:
        np.multiply(act, da, out=dh[:, inner:])
        act, slope = act * h[:, inner:], slope * h[:, inner:]
    a[...] = act
    np.multiply(da, slope, out=dh[:, :inner])


TABLE = {"moe_plan_rows": moe_plan_rows, "moe_combine_rows": moe_combine_rows, "moe_mlp_host": moe_mlp_host,
         "moe_mlp_grad": moe_mlp_grad}
