"""Reductions. `axis`: an int, a tuple of ints, or None for all axes."""

from __future__ import annotations

from ember_ml.ops.declare import op
from ember_ml.ops.dispatch import CONSTANT
from ember_ml.ops.elementwise import conj, divide, exp, isfinite, log, sqrt, square, subtract, where
from ember_ml.ops.shape import broadcast_to, reshape


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


@op(vjp=(lambda g, _y, x, *, axis=None, keepdims=False: broadcast_to(_open(g, x, axis, keepdims), x.shape),), method=True)
def sum(x, *, axis=None, keepdims=False):  # noqa: A001 - the standard's name
    """Sum over `axis`; small integers and bools are summed as int32 (unsigned: uint32). Empty: 0."""
    ...


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
