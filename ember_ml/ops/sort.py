"""Order: sorting, top-k, permutations. Ties go to the lower index on every engine."""

from __future__ import annotations

from ember_ml.errors import ShapeError
from ember_ml.kernels import MOE_TOPK
from ember_ml.ops.creation import arange, zeros
from ember_ml.ops.declare import op
from ember_ml.ops.dispatch import CONSTANT
from ember_ml.ops.elementwise import where
from ember_ml.ops.index import gather_along, take_along_axis
from ember_ml.ops.reduce import argmax
from ember_ml.ops.shape import checked_axis, cut, expand_dims, stack, swap_axes
from ember_ml.tensor import EmberTensor

#: up to this k, taking the largest k times beats a sort, unless there are few numbers in all
_PASSES, _FEW = 16, 4096

#: what NaN and minus infinity count as: the least finite number of the dtype that is compared in
_LEAST = {"float32": -(2.0 - 2.0 ** -23) * 2.0 ** 127, "float64": -(2.0 - 2.0 ** -52) * 2.0 ** 1023}


@op(vjp=CONSTANT, ignores=("stable",))
def argsort(x, *, axis=-1, descending=False, stable=True):
    """int32 indices that sort x along `axis`, always stable: equal elements keep their order, descending too."""
    ...


def sort(x: EmberTensor, axis: int = -1, descending: bool = False, stable: bool = True) -> EmberTensor:
    """x in order along `axis`; always stable."""
    axis = checked_axis(axis, x.ndim, "sort")
    return gather_along(x, argsort(x, axis=axis, descending=descending), axis=axis)


@op(public="topk", vjp=CONSTANT, kernel=MOE_TOPK)
def topk_indices(x, *, k=2):
    """int32 indices of the k largest elements along the last axis, by falling value, ties to the lower index.

    NaN and minus infinity count as the least finite float32 (float64 of float64), so that they are chosen last.
    """
    if x.size == 0:
        return zeros((*x.shape[:-1], k), dtype="int32", like=x)
    x = x.astype("float32") if x.dtype.name in ("float16", "bfloat16") else x
    if x.dtype.name not in _LEAST:
        return cut(argsort(x, axis=-1, descending=True), 0, k, axis=-1)
    least = _LEAST[x.dtype.name]
    x = where(x > least, x, least)
    if k > _PASSES or x.size <= _FEW:
        return cut(argsort(x, axis=-1, descending=True), 0, k, axis=-1)
    places, found = arange(x.shape[-1], like=x), []
    for i in range(k):
        found.append(argmax(x, axis=-1))
        if i < k - 1:
            x = where(places == expand_dims(found[-1], -1), float("-inf"), x)
    return stack(found, axis=-1)


def topk(x: EmberTensor, k: int, axis: int = -1) -> tuple[EmberTensor, EmberTensor]:
    """The k largest elements along `axis` in descending order, and their int32 indices; ties to the lower index.

    NaN and minus infinity count as the least finite float32 (float64 of float64): chosen only where nothing else is left.

    Raises ShapeError unless 1 <= k <= length.
    """
    if not 1 <= k <= x.shape[axis]:
        raise ShapeError(f"topk: expected 1 <= k <= {x.shape[axis]} for shape {x.shape}, got k={k}")
    if axis % x.ndim != x.ndim - 1:
        indices = swap_axes(topk_indices(swap_axes(x, axis, -1), k=k), axis, -1)
    else:
        indices = topk_indices(x, k=k)
    return take_along_axis(x, indices, axis), indices
