"""Mixture of experts on NumPy: a loop over experts, whose rows are in order.

An expert's rows go through the whole perceptron, results are written where they belong, and nothing is padded. `build` has what CuPy
shares, `groups` and `tiles` what torch does.
"""

from __future__ import annotations

import math

import numpy as np

from ember_ml.backend.numpy.special import erf

#: rows that go through an expert at a time: their hidden part stays in the cache, and a matrix product of them is no slower
CHUNK = 512

#: elements of an array that all elementwise passes go through at a time, so that these stay in the cache, too
_PASS = 1 << 15


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
    np.exp(s, out=s)                                       # may overflow, where silu is 0
    s += 1
    return np.divide(z, s, out=s)


def _silu_slope(z):
    s = _sigmoid(z)
    a = z * s
    slope = 1 - s
    slope *= a
    slope += s
    return a, slope


def _swiglu_slope(gate, up, a):
    """Fills a = silu(gate) up; returns silu(gate) and the slope in gate, up s + a (1 - s) = s (up - a) + a with s = sigmoid(gate)."""
    s = _sigmoid(gate)
    act = gate * s
    np.multiply(act, up, out=a)
    slope = up - a
    slope *= s
    slope += a
    return act, slope


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


def moe_mlp_host(x, weights, w1, b1, w2, b2, order, inverse, offsets, *, activation, glu, block, complete, keep, empty=np.empty):
    """The hidden rows of an expert lie transposed, (hidden, rows), in the place of its rows: a product with few rows is up to twice as fast
    with these last, and gate and up are each in one piece. `empty` makes the arrays that are kept."""
    kind, x, w1, w2 = x.dtype, _wide(x), _wide(w1), _wide(w2)
    wide, tokens = w1.shape[1], order // max(inverse.shape[1], 1)
    hidden = empty((order.size if keep else 0, wide), x.dtype)
    passing = np.empty((0 if keep else wide) * min(CHUNK, order.size), x.dtype)
    out = np.empty((order.size, w2.shape[1]), x.dtype)
    for e, lo, hi in spans(offsets.tolist()):
        for first in range(lo, hi, CHUNK):
            last = min(first + CHUNK, hi)
            h = hidden[lo:hi].reshape(wide, -1)[:, first - lo:last - lo] if keep else passing[:wide * (last - first)].reshape(wide, -1)
            np.matmul(w1[e], x[tokens[first:last]].T, out=h)
            if b1 is not None:
                h += b1[e][:, None]
            out[first:last] = np.matmul(w2[e], _activate(h, activation, glu)).T
            if b2 is not None:
                out[first:last] += b2[e]
    hidden[int(offsets[-1]):] = out[int(offsets[-1]):] = 0
    return moe_combine_rows(out, inverse, weights).astype(kind, copy=False), hidden.astype(kind, copy=False)


def moe_mlp_grad(g, h, x, weights, w1, b1, w2, b2, order, inverse, offsets, *, activation, glu, block, complete, empty=np.empty):
    kind, g, h, x, w1, w2 = x.dtype, *map(_wide, (g, h, x, w1, w2))
    inner, wide, ends = w2.shape[2], w1.shape[1], offsets.tolist()
    d_w1, d_w2 = (empty(w.shape, w.dtype) for w in (w1, w2))
    d_b1, d_b2 = (np.zeros((0,) if b is None else b.shape, x.dtype) for b in (b1, b2))
    d_rows, d_weights = np.empty((order.size, x.shape[1]), x.dtype), np.zeros(order.size, weights.dtype)
    row_weights, tokens = weights.reshape(-1)[order, None], order // max(inverse.shape[1], 1)
    counts = np.diff(offsets)
    for e in np.flatnonzero(counts == 0):
        d_w1[e] = d_w2[e] = 0
    most = int(counts.max(initial=0))
    for_a, for_dh = (np.empty(most * width, x.dtype) for width in (inner, wide))               # one piece of memory for all experts
    for e, lo, hi in spans(ends):                          # all without the rows' weights, which come in on the narrow side
        a, dh = (memory[:(hi - lo) * width].reshape(width, -1) for memory, width in ((for_a, inner), (for_dh, wide)))
        gs, xs, w = g[tokens[lo:hi]], x[tokens[lo:hi]], row_weights[lo:hi]
        np.matmul(w2[e].T, gs.T, out=dh[-inner:])
        _activation_backward(h[lo:hi].reshape(wide, -1), a, dh, d_weights[lo:hi], activation, glu)
        np.matmul(dh.T, w1[e], out=d_rows[lo:hi])
        if b1 is not None:
            np.matmul(dh, w[:, 0], out=d_b1[e])
        if b2 is not None:
            d_weights[lo:hi] += gs @ _wide(b2[e])
            np.matmul(w[:, 0], gs, out=d_b2[e])
        xs *= w
        gs *= w
        np.matmul(dh, xs, out=d_w1[e])
        np.matmul(gs.T, a.T, out=d_w2[e])
    d_rows[ends[-1]:] = 0
    d_x = moe_combine_rows(d_rows, inverse, weights)
    narrow = [d.astype(kind, copy=False) for d in (d_x, d_w1, d_b1, d_w2, d_b2)]
    return narrow[0], d_weights[inverse], *narrow[1:]


def _parts(h):
    """Slices of the lines of an array whose elementwise passes stay in the cache."""
    lines = max(1, _PASS // max(h.shape[1], 1))
    return (slice(start, start + lines) for start in range(0, len(h), lines))


def _activate(h, activation, glu):
    act = _ACTIVATIONS[activation][0]
    with np.errstate(over="ignore"):
        if not glu:
            return act(h)
        inner = len(h) // 2
        gate, up = h[:inner], h[inner:]
        a = np.empty(gate.shape, gate.dtype)
        for i in _parts(gate):
            np.multiply(act(gate[i]), up[i], out=a[i])
        return a


def _activation_backward(h, a, dh, d_weights, activation, glu):
    """Fills a with the activations of h, and adds to d_weights their products with the gradients for a, which lie in the last lines of dh;
    then fills dh with the gradients for h."""
    inner = len(a)
    gate, up, d_gate, da = h[:inner], h[-inner:], dh[:inner], dh[-inner:]          # without glu these are twice the same
    for i in _parts(a):
        if glu and activation == "silu":
            act, slope = _swiglu_slope(gate[i], up[i], a[i])
        else:
            act, slope = _ACTIVATIONS[activation][1](gate[i])
            a[i] = act * up[i] if glu else act
            slope = slope * up[i] if glu else slope
        d_weights += np.einsum("fr,fr->r", a[i], da[i])
        np.multiply(slope, da[i], out=d_gate[i])
        if glu:
            np.multiply(act, da[i], out=da[i])


TABLE = {"moe_plan_rows": moe_plan_rows, "moe_combine_rows": moe_combine_rows, "moe_mlp_host": moe_mlp_host,
         "moe_mlp_grad": moe_mlp_grad}
