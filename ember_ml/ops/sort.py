"""Order: sorting, top-k, permutations. Ties go to the lower index on every engine."""

from __future__ import annotations

from ember_ml.errors import ShapeError
from ember_ml.ops.declare import op
from ember_ml.ops.dispatch import CONSTANT
from ember_ml.ops.index import take_along_axis
from ember_ml.ops.shape import cut
from ember_ml.tensor import EmberTensor


@op(vjp=CONSTANT)
def argsort(x, *, axis=-1, descending=False):
    """int32 indices that sort x along `axis`, stable: equal elements keep their order, descending too."""
    ...


def sort(x: EmberTensor, axis: int = -1, descending: bool = False) -> EmberTensor:
    """x in order along `axis`."""
    return take_along_axis(x, argsort(x, axis=axis, descending=descending), axis)


def topk(x: EmberTensor, k: int, axis: int = -1) -> tuple[EmberTensor, EmberTensor]:
    """The k largest elements along `axis` in descending order, and their int32 indices; ties to the lower index.

    Raises ShapeError unless 1 <= k <= length.
    """
    if not 1 <= k <= x.shape[axis]:
        raise ShapeError(f"topk: expected 1 <= k <= {x.shape[axis]} for shape {x.shape}, got k={k}")
    indices = cut(argsort(x, axis=axis, descending=True), 0, k, axis=axis)
    return take_along_axis(x, indices, axis), indices
