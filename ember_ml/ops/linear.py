"""Matrix products."""

from __future__ import annotations

from ember_ml.errors import ShapeError
from ember_ml.ops.declare import op
from ember_ml.ops.elementwise import conj
from ember_ml.ops.shape import expand_dims, reshape, squeeze, swap_axes


def _left(g, x, y):
    if y.ndim == 1:
        return expand_dims(g, -1) * conj(y)
    if x.ndim == 1:
        return squeeze(matmul(conj(y), expand_dims(g, -1)), -1)
    return matmul(g, swap_axes(conj(y)))


def _right(g, x, y):
    if y.ndim == 1:
        return conj(x) * expand_dims(g, -1)
    if x.ndim == 1:
        return expand_dims(conj(x), -1) * expand_dims(g, -2)
    if x.ndim > 2 and y.ndim == 2:                       # one product over all rows instead of one per batch
        return matmul(swap_axes(reshape(conj(x), (-1, x.shape[-1]))), reshape(g, (-1, g.shape[-1])))
    return matmul(swap_axes(conj(x)), g)


@op(rule="promote", operator="__matmul__", reflected="__rmatmul__", vjp=(lambda g, _y, a, b: _left(g, a, b), lambda g, _y, a, b: _right(g, a, b)))
def matmul(x, y):
    """Matrix product over the last two axes, leading axes broadcasting: (..., n, k) with (..., k, m) gives (..., n, m).

    A one-dimensional operand is a row on the left, a column on the right. Library code calls this function: the
    operator `@` breaks torch.compile's graph.
    """
    ...


@op(rule="promote")
def addmm(c, x, y):
    """c + x y, the product over the last two axes, in one launch where the engine has one; c broadcasts to the product."""
    return c + matmul(x, y)


@op(public="linear", rule="promote")
def linear_rows(x, weight, bias=None):
    """Native form of `linear`, for checked shapes."""
    y = matmul(x, swap_axes(weight))
    return y if bias is None else y + bias


def linear(x, weight, bias=None):
    """x W^T + b: x (..., d_in), weight (d_out, d_in), bias (d_out,) or None; returns (..., d_out).

    Raises ShapeError if the last axis of x is not d_in.
    """
    if x.shape[-1] != weight.shape[-1]:
        raise ShapeError(f"linear: expected x of shape (..., d_in) = (..., {weight.shape[-1]}), got {x.shape}")
    return linear_rows(x, weight, bias)


def outer(x, y):
    """x[i] * y[j] of two vectors: (n,) and (m,) give (n, m)."""
    return expand_dims(x, 1) * expand_dims(y, 0)
