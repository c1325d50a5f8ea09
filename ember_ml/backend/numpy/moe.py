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


def _wide(x):
    return x if x.dtype.itemsize >= 4 else x.astype("float32")


def _spans(offsets):
    """(expert, first row, row after the last) of each expert that has rows."""
    ends = offsets.tolist()
    return [(e, lo, hi) for e, (lo, hi) in enumerate(zip(ends, ends[1:])) if hi > lo]


def build(xp) -> dict:
    """The grouped matrix products on an array module."""

    def grouped_rows(x, w, offsets, *, block, complete):
        kind, x, w = x.dtype, _wide(x), _wide(w)
        y = xp.empty((x.shape[0], w.shape[1]), x.dtype)
        for e, lo, hi in _spans(offsets):
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


def moe_plan_rows(ids, *, experts, block, rows):
    if block != 1:
        raise ValueError(f"NumPy's plans have block 1, got {block}")
    flat = ids.reshape(-1)
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
    s = np.negative(z)
    with np.errstate(over="ignore"):
        np.exp(s, out=s)
    s += 1
    return np.divide(1, s, out=s)


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
    act, inner = _ACTIVATIONS[activation][0], w2.shape[2]
    hidden = np.empty((order.size if keep else min(CHUNK, order.size), w1.shape[1]), x.dtype)
    tokens = order // max(inverse.shape[1], 1)
    out = np.empty((order.size, w2.shape[1]), x.dtype)
    for e, first, last in _spans(offsets):
        up, down = w1[e].T, w2[e].T
        for lo in range(first, last, CHUNK):
            hi = min(lo + CHUNK, last)
            h = np.matmul(x[tokens[lo:hi]], up, out=hidden[lo:hi] if keep else hidden[:hi - lo])
            if b1 is not None:
                h += b1[e]
            a = act(h[:, :inner])
            if glu:
                a = np.multiply(a, h[:, inner:], out=a if a.base is not hidden else None)
            y = np.matmul(a, down, out=out[lo:hi])
            if b2 is not None:
                y += b2[e]
    out[int(offsets[-1]):] = 0
    hidden = hidden if keep else hidden[:0]
    return moe_combine_rows(out, inverse, weights).astype(kind, copy=False), hidden.astype(kind, copy=False)


def moe_mlp_grad(g, h, x, weights, w1, b1, w2, b2, order, inverse, offsets, *, activation, glu, block, complete):
    kind, g, h, x, w1, w2 = x.dtype, *map(_wide, (g, h, x, w1, w2))
    slope, inner = _ACTIVATIONS[activation][1], w2.shape[2]
    slots = max(inverse.shape[1], 1)
    d_w1, d_w2 = (np.empty(w.shape, w.dtype) for w in (w1, w2))
    d_b1, d_b2 = (np.zeros((0,) if b is None else b.shape, x.dtype) for b in (b1, b2))
    d_rows, d_weights = np.empty((order.size, x.shape[1]), x.dtype), np.zeros(order.size, weights.dtype)
    row_weights = weights.reshape(-1)[order]
    tokens = order // slots
    ends = offsets.tolist()
    for e, (first, last) in enumerate(zip(ends, ends[1:])):
        rows = last - first
        scaled, dh = np.empty((rows, inner), x.dtype), np.empty((rows, w1.shape[1]), x.dtype)
        gs, xs = g[tokens[first:last]], x[tokens[first:last]]
        for lo in range(first, last, CHUNK):
            hi = min(lo + CHUNK, last)
            here, w = slice(lo - first, hi - first), row_weights[lo:hi, None]
            da = np.matmul(gs[here], w2[e])
            gate, up = h[lo:hi, :inner], h[lo:hi, inner:]
            a, da_dz = slope(gate)
            if glu:
                np.multiply(a, up, out=scaled[here])
                d_weights[lo:hi] = np.einsum("rf,rf->r", scaled[here], da)
                da *= w
                np.multiply(a, da, out=dh[here, inner:])
                da *= up
            else:
                scaled[here] = a
                d_weights[lo:hi] = np.einsum("rf,rf->r", scaled[here], da)
                da *= w
            scaled[here] *= w
            np.multiply(da, da_dz, out=dh[here, :inner])
            np.matmul(dh[here], w1[e], out=d_rows[lo:hi])
        np.matmul(gs.T, scaled, out=d_w2[e])
        np.matmul(dh.T, xs, out=d_w1[e])
        if b1 is not None:
            d_b1[e] = dh.sum(0)
        if b2 is not None:
            d_b2[e] = (gs * row_weights[first:last, None]).sum(0)
            d_weights[first:last] += gs @ _wide(b2[e])
    d_rows[ends[-1]:] = 0
    d_x = moe_combine_rows(d_rows, inverse, np.ones_like(weights))
    narrow = [d.astype(kind, copy=False) for d in (d_x, d_w1, d_b1, d_w2, d_b2)]
    return narrow[0], d_weights[inverse], *narrow[1:]


TABLE = {"moe_plan_rows": moe_plan_rows, "moe_combine_rows": moe_combine_rows, "moe_mlp_host": moe_mlp_host,
         "moe_mlp_grad": moe_mlp_grad}
