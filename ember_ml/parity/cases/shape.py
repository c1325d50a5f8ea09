"""Moving elements: shapes, joins, cuts, indices."""

from __future__ import annotations

import numpy as np

from ember_ml import ops
from ember_ml.ops import index
from ember_ml.ops import shape as forms
from ember_ml.parity.cases.case import draws, row

real, ints = draws(3)
X = real(3, 4)

row("reshape", lambda x: ops.reshape(x, (2, -1)), [X], lambda x: x.reshape(2, -1), also="ic")
row("reshape", lambda x: ops.reshape(x, (0, 6)), [np.zeros((0, 4))], lambda x: x.reshape(0, 6), label="of nothing")
row("reshape", lambda x: ops.reshape(x, (1, 1)), [np.array(0.7)], lambda x: x.reshape(1, 1), label="of a scalar")
row("permute_dims", lambda x: ops.permute_dims(x, (2, 0, 1)), [real(2, 3, 4)], lambda x: x.transpose(2, 0, 1), also="ic")
row("permute_dims", lambda x: ops.permute_dims(x, (1, 0)), [np.zeros((4, 0))], lambda x: x.T, label="of nothing")
row("broadcast_to", lambda x: ops.broadcast_to(x, (2, 3, 4)), [real(3, 1)], lambda x: np.broadcast_to(x, (2, 3, 4)), also="ic")
row("broadcast_to", lambda x: ops.broadcast_to(x, (2, 0)), [np.array(0.7)], lambda x: np.broadcast_to(x, (2, 0)), (), label="to nothing")
row("concat_all", lambda x, y: ops.concat([x, y], axis=1), [X, real(3, 2)], lambda x, y: np.concatenate([x, y], 1), also="ic", empty=(0, 1))
row("concat_all", lambda x, y: ops.concat([x, y], axis=0), [X, np.zeros((0, 4))], lambda x, y: x, (0,), label="with nothing")
row("split_all", lambda x: ops.split(x, (1, 3), axis=1)[1] * ops.split(x, 4, axis=1)[2], [X], lambda x: x[:, 1:] * x[:, 2:3], also="ic",
    empty=(0,))
row("cut", lambda x: forms.cut(x, 1, 3, axis=1), [X], lambda x: x[:, 1:3], also="ic", empty=(0,))
row("pad", lambda x: ops.pad(x, ((1, 0), (2, 3))), [X], lambda x: np.pad(x, ((1, 0), (2, 3))), also="ic")
row("pad", lambda x: ops.pad(x, ((1, 2), (0, 1))), [np.zeros((0, 4))], lambda x: np.pad(x, ((1, 2), (0, 1))), (), label="of nothing")
row("flip", lambda x: ops.flip(x, axis=1), [X], lambda x: x[:, ::-1], also="ic", empty=(0,))

ROWS, WIDE = ints(2, 3), ints(3, 2, high=4)
row("bounded_indices", lambda i: index.bounded_indices(i, length=5), [np.arange(-9, 9, dtype=np.int32)],
    lambda i: np.clip(np.where(i < 0, i + 5, i), 0, 4), (), empty=(0,))
row("take_axis", lambda x, i: ops.take(x, i, axis=0), [real(5, 2), ROWS], lambda x, i: x[i], also="ic", empty=(1,))
row("take_axis", lambda x, i: ops.take(x, i, axis=1), [real(2, 5, 3), ROWS], lambda x, i: x[:, i], label="middle", empty=(0,))


def _scatter(x, i, u):
    out = x.copy()
    np.add.at(out, i, u)
    return out


row("scatter_add", lambda x, i, u: ops.scatter_add(x, i, u), [real(5, 2), ROWS, real(2, 3, 2)], _scatter, also="ic")
row("scatter_add", lambda x, i, u: ops.scatter_add(x, i, u), [real(5, 2), ROWS[:0], np.zeros((0, 3, 2))], _scatter, (0,), label="of nothing")
row("gather_along", lambda x, i: ops.take_along_axis(x, i, 1), [X, WIDE], lambda x, i: np.take_along_axis(x, i, 1), also="ic", empty=(0, 1))


def _put(x, i, u):
    out = x.copy()
    np.add.at(out, (np.arange(len(x))[:, None], i), u)
    return out


row("put_add_along_axis", lambda x, i, u: ops.put_add_along_axis(x, i, u, axis=1), [X, WIDE, real(3, 2)], _put, also="ic", empty=(0, 1, 2))
row("get_at", lambda x, i: x[i, 1:, None], [real(5, 3), ints(2)], lambda x, i: x[i, 1:, None], also="ic", empty=(1,))


def _assign(x, v):
    x = x * 1.0
    x[1:, ::2] = v
    return x * x


row("set_at", _assign, [X, real(2)], _assign)
row("set_at", lambda x, v: index.set_at(x, v, index=(slice(0, 0),)), [X, np.zeros((0, 4))], lambda x, v: x, (0,), label="nothing", also="ic")
row("add_at", lambda x, v: index.add_at(x, v, index=(slice(None), 1)), [X, real(3)], lambda x, v: x + np.eye(4, dtype=x.dtype)[1] * v[:, None], also="ic",
    empty=(0, 1))
