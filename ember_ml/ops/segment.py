"""Sums by segment, and prefixes of any associative operation."""

from __future__ import annotations

from collections.abc import Callable

from ember_ml.autodiff import tree
from ember_ml.errors import ShapeError
from ember_ml.ops.creation import zeros
from ember_ml.ops.elementwise import maximum
from ember_ml.ops.index import checked_indices, scatter_add
from ember_ml.ops.shape import concat, cut, reshape
from ember_ml.tensor import EmberTensor


def segment_sum(x: EmberTensor, segments: EmberTensor, count: int) -> EmberTensor:
    """y[s] = the sum of all x[i] with segments[i] = s.

    Args:
        x: (N, ...). segments: (N,), integers in [0, count), in any order.

    Returns: (count, ...), zero where a segment has no rows. Raises ShapeError for shapes that do not fit, IndexError as `take`.
    """
    if segments.ndim != 1 or x.ndim < 1 or x.shape[0] != segments.shape[0]:
        raise ShapeError(f"segment_sum: expected x (N, ...) and segments (N,), got {x.shape} and {segments.shape}")
    return scatter_add(zeros((count, *x.shape[1:]), x.dtype, like=x), checked_indices("segment_sum", segments, count), x, axis=0)


def segment_mean(x: EmberTensor, segments: EmberTensor, count: int) -> EmberTensor:
    """y[s] = the mean of all x[i] with segments[i] = s, zero where there is none; shapes and errors as `segment_sum`."""
    ones = zeros(segments.shape, x.dtype, like=x) + 1.0
    rows = maximum(segment_sum(ones, segments, count), 1.0)
    return segment_sum(x, segments, count) / reshape(rows, (count, *(1,) * (x.ndim - 1)))


def associative_scan(combine: Callable, xs, axis: int = 0):
    """y_0 = x_0, y_i = combine(y_{i-1}, x_i) along an axis, in log2(n) rounds over whole tensors.

    Args:
        combine: `combine(earlier, later)`, associative, of two trees like xs with any length along the axis.
        xs: a tensor, or a tree of tensors with one length along the axis.

    Source: Hillis and Steele 1986, Data Parallel Algorithms. Sums, products and maxima have functions of their own, as have
    linear recurrences, which need no log2(n) copies: `cumsum`, `cumprod`, `cummax`, `linear_scan`.
    """
    lengths = {x.shape[axis] for x in tree.tensors(xs)}
    if len(lengths) != 1:
        raise ShapeError(f"associative_scan: expected tensors of one length along axis {axis}, got {[x.shape for x in tree.tensors(xs)]}")
    n, reach = lengths.pop(), 1
    while reach < n:
        joined = combine(tree.map(lambda x: cut(x, 0, n - reach, axis=axis), xs), tree.map(lambda x: cut(x, reach, n, axis=axis), xs))
        leaves, form = tree.flatten(joined)
        first = tree.tensors(tree.map(lambda x: cut(x, 0, reach, axis=axis), xs))
        xs, reach = tree.unflatten(form, [concat([a, b], axis=axis) for a, b in zip(first, leaves)]), 2 * reach
    return xs
