"""Reductions. `axis`: an int, a tuple of ints, or None for all axes."""

from __future__ import annotations

from ember_ml.ops.creation import ones
from ember_ml.ops.declare import op
from ember_ml.ops.dispatch import CONSTANT
from ember_ml.ops.elementwise import conj, divide, exp, isfinite, log, sqrt, square, subtract, where
from ember_ml.ops.shape import broadcast_to, concat, cut, permute_dims, reshape
from ember_ml.tensor.common.dtypes import accumulator


def axes_of(x, axis) -> tuple[int, ...]:
    """`axis` as a tuple of non-negative ints."""
    axes = range(x.ndim) if axis is None else (axis,) if isinstance(axis, int) else axis
    return tuple(a % x.ndim for a in axes)


def _open(g, x, axis, keepdims):
    """A reduced tensor with its reduced axes back, of length one."""
    if keepdims:
        return g
    axes = axes_of(x, axis)
    return reshape(g, tuple(1 if i in axes else n for i, n in enumerate(x.shape)))


def _count(x, axis) -> int:
    n = 1
    for a in axes_of(x, axis):
        n *= x.shape[a]
    return n


@op(vjp=(lambda g, _y, x, *, axis=None, dtype=None, keepdims=False: broadcast_to(_open(g, x, axis, keepdims), x.shape),), method=True)
def sum(x, *, axis=None, dtype=None, keepdims=False):  # noqa: A001 - the standard's name
    """Sum over `axis`, in `dtype`; None: in x's, small integers and bools as int32 (unsigned: uint32). Empty: 0."""
    ...


@op(method=True)
def prod(x, *, axis=None, dtype=None, keepdims=False):
    """Product over `axis`, in `dtype`; None as for `sum`. Empty: 1. The gradient holds at zeros too."""
    x = x.astype(accumulator(x.dtype) if dtype is None else dtype)
    kept = tuple(i for i in range(x.ndim) if i not in axes_of(x, axis))
    order = (*kept, *axes_of(x, axis))
    y = reshape(permute_dims(x, order), (*(x.shape[i] for i in kept), _count(x, axis)))
    while y.shape[-1] > 1:                               # halves, pairwise: a division would not survive a zero
        half = y.shape[-1] // 2
        pairs = cut(y, 0, half, axis=-1) * cut(y, half, 2 * half, axis=-1)
        y = pairs if y.shape[-1] == 2 * half else concat([pairs, cut(y, 2 * half, 2 * half + 1, axis=-1)], axis=-1)
    y = reshape(y, y.shape[:-1]) if y.shape[-1] else ones(y.shape[:-1], dtype=y.dtype, like=y)
    return reshape(y, tuple(1 if i in axes_of(x, axis) else n for i, n in enumerate(x.shape))) if keepdims else y


@op(rule="float", method=True,
    vjp=(lambda g, _y, x, *, axis=None, keepdims=False:
         broadcast_to(_open(g, x, axis, keepdims) / (_count(x, axis) or 1), x.shape),))
def mean(x, *, axis=None, keepdims=False):
    """Arithmetic mean over `axis`; integers are averaged as float32."""
    ...


@op(rule="float", method=True)
def var(x, *, axis=None, keepdims=False, correction=0):
    """Variance over `axis`: sum of squared deviations from the mean over (count - correction)."""
    centred = x - mean(x, axis=axis, keepdims=True)
    return sum(square(centred), axis=axis, keepdims=keepdims) / (_count(x, axis) - correction)


@op(rule="float", method=True)
def std(x, *, axis=None, keepdims=False, correction=0):
    """Standard deviation over `axis`: the square root of `var`."""
    return sqrt(var(x, axis=axis, keepdims=keepdims, correction=correction))


def _extreme_grad(g, y, x, axis, keepdims):
    hit = (x == _open(y, x, axis, keepdims)).astype(x.dtype)
    return _open(g, x, axis, keepdims) * hit / sum(hit, axis=axis, keepdims=True)


@op(vjp=(lambda g, y, x, *, axis=None, keepdims=False: _extreme_grad(g, y, x, axis, keepdims),), method=True)
def max(x, *, axis=None, keepdims=False):  # noqa: A001 - the standard's name
    """Largest element over `axis`. Gradient at a tie: shared equally."""
    ...


@op(vjp=(lambda g, y, x, *, axis=None, keepdims=False: _extreme_grad(g, y, x, axis, keepdims),), method=True)
def min(x, *, axis=None, keepdims=False):  # noqa: A001 - the standard's name
    """Smallest element over `axis`. Gradient at a tie: shared equally."""
    ...


@op(vjp=CONSTANT, method=True)
def argmax(x, *, axis=None, keepdims=False):
    """int32 index of the first largest element along `axis` (an int), or of the flattened tensor for None."""
    ...


@op(vjp=CONSTANT, method=True)
def argmin(x, *, axis=None, keepdims=False):
    """int32 index of the first smallest element along `axis` (an int), or of the flattened tensor for None."""
    ...


def count_nonzero(x, axis=None, keepdims: bool = False):
    """int32 number of elements over `axis` that are not zero."""
    return sum(x != 0 if x.dtype.kind != "bool" else x, axis=axis, keepdims=keepdims)


@op(vjp=CONSTANT, method=True)
def all(x, *, axis=None, keepdims=False):  # noqa: A001 - the standard's name
    """Whether all elements over `axis` are true (non-zero)."""
    ...


@op(vjp=CONSTANT, method=True)
def any(x, *, axis=None, keepdims=False):  # noqa: A001 - the standard's name
    """Whether any element over `axis` is true (non-zero)."""
    ...


@op(rule="float",
    vjp=(lambda g, y, x, *, axis=-1, keepdims=False:
         _open(g, x, axis, keepdims) * exp(x - _open(y, x, axis, keepdims)),))
def logsumexp(x, *, axis=-1, keepdims=False):
    """log(sum(exp(x))) over `axis`, without overflow: the largest element is taken out first."""
    top = max(x, axis=axis, keepdims=True)
    safe = where(isfinite(top), top, 0.0)                # an infinite row gives its own value by itself
    out = log(sum(exp(subtract(x, safe)), axis=axis, keepdims=True)) + safe
    return out if keepdims else reshape(out, tuple(n for i, n in enumerate(x.shape) if i not in axes_of(x, axis)))


def norm(x, axis=None, keepdims: bool = False):
    """Euclidean norm sqrt(sum(|x|^2)) over `axis`."""
    return sqrt(sum((x * conj(x)).real(), axis=axis, keepdims=keepdims))


def normalize(x, axis=-1, eps: float = 1e-12):
    """x divided by its Euclidean norm along `axis` (at least `eps`)."""
    size = norm(x, axis=axis, keepdims=True)
    return divide(x, where(size > eps, size, size * 0 + eps))
