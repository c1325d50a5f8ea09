"""Sums, means, extremes, and what is built on them."""

from __future__ import annotations

import numpy as np

from ember_ml import ops
from ember_ml.parity.cases.case import draws, row

real, ints = draws(2)
X = real(3, 4, low=-1.1, high=2.3)


for _name, _expect, _also in [("sum", np.sum, "ic"), ("mean", np.mean, "c"), ("max", np.max, "i"), ("min", np.min, "i"), ("var", np.var, "")]:
    for _label, _kw, _empty in [("all", {}, None), ("last", {"axis": -1}, (0,)), ("kept", {"axis": (0, 1), "keepdims": True}, None)]:
        row(_name, lambda x, f=getattr(ops, _name), kw=_kw: f(x, **kw), [X], lambda x, f=_expect, kw=_kw: f(x, **kw), label=_label,
            also=_also, empty=_empty)
row("sum", ops.sum, [np.zeros((0, 4))], np.sum, (), label="of nothing", also="ic")
row("sum", ops.sum, [ints(4, 5) > 2], np.sum, (), label="bools")
row("argmax", lambda x: ops.argmax(x, axis=1), [X], lambda x: np.argmax(x, 1), (), also="i", empty=(0,))
row("all", lambda x: ops.all(x, axis=0), [ints(3, 4) > 0], lambda x: np.all(x, 0), ())
row("any", ops.any, [ints(3, 4) > 3], np.any, ())
for _name, _expect in (("all", np.all), ("any", np.any)):
    row(_name, getattr(ops, _name), [np.zeros((0, 3), bool)], _expect, (), label="of nothing")
row("logsumexp", lambda x: ops.logsumexp(x, axis=1), [real(3, 4, low=-80.0, high=80.0)],
    lambda x: np.log(np.exp(x - 80).sum(1)) + 80, empty=(0,))
row("cumsum", lambda x: ops.cumsum(x, axis=1), [X], lambda x: np.cumsum(x, 1), also="ic", empty=(0,))
row("softmax", lambda x: ops.softmax(x, axis=1), [X], lambda x: np.exp(x) / np.exp(x).sum(1, keepdims=True), empty=(0,))
row("softmax", lambda x: ops.softmax(x, axis=0), [X], lambda x: np.exp(x) / np.exp(x).sum(0), label="first axis")
row("log_softmax", ops.log_softmax, [X], lambda x: x - np.log(np.exp(x).sum(-1, keepdims=True)), empty=(0,))

_WAVES = real(3, 9, low=-3.0, high=2.0)
for _axis in (0, 1):
    row("cummax", lambda x, axis=_axis: ops.cummax(x, axis=axis), [_WAVES], lambda x, axis=_axis: np.maximum.accumulate(x, axis),
        label=f"axis {_axis}", also="i", empty=(0,))
    row("cumlogsumexp", lambda x, axis=_axis: ops.cumlogsumexp(x, axis=axis), [_WAVES],
        lambda x, axis=_axis: np.logaddexp.accumulate(x, axis), label=f"axis {_axis}", empty=(0,))
row("cumlogsumexp", lambda x: ops.cumlogsumexp(x, axis=-1), [_WAVES * 50.0], lambda x: np.logaddexp.accumulate(x, -1), label="large")
row("cummin", lambda x: ops.cummin(x, axis=1), [_WAVES], lambda x: np.minimum.accumulate(x, 1), also="i", empty=(0,))
row("norm", lambda x: ops.norm(x, axis=-1), [X], lambda x: np.linalg.norm(x, axis=-1), also="c", empty=(0,))
row("normalize", ops.normalize, [X], lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True), also="c", empty=(0,))
