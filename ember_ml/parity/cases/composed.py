"""Public functions that are made of ops: windows over images, sums of products, segments, prefixes."""

from __future__ import annotations

import numpy as np

from ember_ml import ops
from ember_ml.parity.cases.case import draws, row

real, ints = draws(10)


def _conv2d(x, w, b=0.0, stride=(1, 1), around=((0, 0), (0, 0)), dilation=(1, 1), groups=1):
    x = np.pad(x, ((0, 0), (0, 0), *around))
    per, out, (_, _, k, m) = w.shape[1], w.shape[0] // groups, w.shape
    h, v = ((x.shape[2 + a] - dilation[a] * (n - 1) - 1) // stride[a] + 1 for a, n in ((0, k), (1, m)))
    y = np.zeros((len(x), w.shape[0], h, v), np.result_type(x, w))
    for n, o, s, t in np.ndindex(y.shape):
        y[n, o, s, t] = sum(w[o, c, i, j] * x[n, o // out * per + c, s * stride[0] + i * dilation[0], t * stride[1] + j * dilation[1]]
                            for c in range(per) for i in range(k) for j in range(m))
    return y + np.reshape(b, (-1, 1, 1))


row("conv2d_rows", ops.conv2d, [real(2, 2, 4, 5), real(3, 2, 2, 3), real(3)], _conv2d, empty=(0,))
row("conv2d_rows", lambda x, w: ops.conv2d(x, w, stride=(2, 1), padding=((1, 0), 1), dilation=(1, 2), groups=2),
    [real(2, 2, 5, 5), real(4, 1, 2, 2)], lambda x, w: _conv2d(x, w, 0.0, (2, 1), ((1, 0), (1, 1)), (1, 2), 2), label="all options")


def _transposed(x, w, b, stride, padding, dilation, groups):
    """Each element of x writes its weight times itself."""
    (batch, channels, height, width), (_, out, k, m) = x.shape, w.shape
    y = np.zeros((batch, out * groups, (height - 1) * stride[0] + dilation[0] * (k - 1) + 1, (width - 1) * stride[1] + dilation[1] * (m - 1) + 1))
    for n, c, s, t in np.ndindex(x.shape):
        group = c // (channels // groups) * out
        for i, j in np.ndindex(k, m):
            y[n, group:group + out, s * stride[0] + i * dilation[0], t * stride[1] + j * dilation[1]] += w[c, :, i, j] * x[n, c, s, t]
    (p, q), (h, v) = padding, y.shape[2:]
    return y[:, :, p:h - p, q:v - q] + np.reshape(b, (-1, 1, 1))


_OPTIONS = {"stride": (2, 3), "padding": (1, 0), "dilation": (2, 1), "groups": 2}
row("conv_transpose2d", lambda x, w, b: ops.conv_transpose2d(x, w, b, **_OPTIONS), [real(2, 4, 3, 2), real(4, 3, 2, 2), real(6)],
    lambda x, w, b: _transposed(x, w, b, **_OPTIONS), empty=(0,))
row("conv_transpose1d", lambda x, w: ops.conv_transpose1d(x, w, stride=2, padding=1), [real(2, 3, 4), real(3, 2, 3)],
    lambda x, w: _transposed(x[:, :, None], w[:, :, None], 0.0, (1, 2), (0, 1), (1, 1), 1)[:, :, 0], empty=(0,))


def _seen(x, size, stride, fn):
    h, v = ((n - k) // s + 1 for n, k, s in zip(x.shape[2:], size, stride))
    return np.stack([np.stack([fn(x[:, :, i * stride[0]:i * stride[0] + size[0], j * stride[1]:j * stride[1] + size[1]], axis=(2, 3))
                               for j in range(v)], -1) for i in range(h)], -2)


for _name, _fn in (("max_pool", np.max), ("avg_pool", np.mean)):
    row(f"{_name}2d", lambda x, f=getattr(ops, f"{_name}2d"): f(x, (2, 3), (1, 2)), [real(2, 2, 4, 5)],
        lambda x, fn=_fn: _seen(x, (2, 3), (1, 2), fn), empty=(0,))
    row(f"{_name}1d", lambda x, f=getattr(ops, f"{_name}1d"): f(x, 3), [real(2, 2, 8)],
        lambda x, fn=_fn: _seen(x[:, :, None], (1, 3), (1, 3), fn)[:, :, 0], empty=(0,))

for _equation, _shapes in [("ij,jk->ik", [(3, 4), (4, 2)]), ("bhid,bhjd->bhij", [(2, 2, 3, 4), (2, 2, 5, 4)]), ("ij,jk,kl->li", [(2, 3), (3, 4), (4, 2)]),
                           ("i,j->ij", [(3,), (4,)]), ("ij,ij->", [(3, 4), (3, 4)]), ("...ij,jk", [(2, 3, 4), (4, 2)]), ("ijk->kj", [(2, 3, 4)]),
                           ("...i,...i->...", [(3, 1, 4), (2, 4)]), ("abc,cd,b->ad", [(2, 3, 4), (4, 2), (3,)])]:
    row("einsum", lambda *xs, e=_equation: ops.einsum(e, *xs), [real(*s) for s in _shapes], lambda *xs, e=_equation: np.einsum(e, *xs),
        label=_equation, also="ic")
row("einsum", lambda x, y: ops.einsum("ij,jk->ik", x, y), [np.zeros((0, 4)), real(4, 2)], lambda x, y: x @ y, (1,), label="of nothing")


def _segments(x, s):
    y = np.zeros((4, *x.shape[1:]), x.dtype)
    np.add.at(y, s, x)
    return y


_S = np.array([2, 0, 2, 3, 0], np.int32)
row("segment_sum", lambda x, s: ops.segment_sum(x, s, 4), [real(5, 3), _S], _segments, also="ic")
row("segment_sum", lambda x, s: ops.segment_sum(x, s, 4), [np.zeros((0, 3)), _S[:0]], _segments, label="of nothing")
row("segment_mean", lambda x, s: ops.segment_mean(x, s, 4), [real(5, 3), _S],
    lambda x, s: _segments(x, s) / np.array([2.0, 1.0, 2.0, 1.0])[:, None])


def _affine(first, second):
    """The map x -> a x + b of `second` after that of `first`."""
    return first[0] * second[0], first[1] * second[0] + second[1]


def _walk(a, b):
    out = [b[:, 0]]
    for t in range(1, b.shape[1]):
        out.append(a[:, t] * out[-1] + b[:, t])
    return np.stack(out, 1)


row("associative_scan", lambda a, b: ops.associative_scan(_affine, (a, b), axis=1)[1], [real(2, 7, low=-0.9, high=0.9), real(2, 7)], _walk,
    also="c", empty=(0, 1))
