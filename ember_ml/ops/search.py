"""Places of values in sorted sequences, and tensors as sets. nan is different from nan here.

The shape of a set's result depends on values, so these wait for them, and none of them can be compiled.
"""

from __future__ import annotations

from typing import NamedTuple

from ember_ml.errors import ShapeError
from ember_ml.ops.creation import full
from ember_ml.ops.declare import op
from ember_ml.ops.dispatch import CONSTANT
from ember_ml.ops.elementwise import equal, logical_not
from ember_ml.ops.index import take_axis
from ember_ml.ops.reduce import any as some
from ember_ml.ops.shape import expand_dims, reshape
from ember_ml.tensor import EmberTensor
from ember_ml.tensor.common.dtypes import promote, weak_result


class UniqueAll(NamedTuple):
    """values: (n,), in rising order; indices: (n,), where each occurs first in the flattened tensor; inverse_indices: the tensor's shape,
    which value each element is; counts: (n,), how often each occurs."""

    values: EmberTensor
    indices: EmberTensor
    inverse_indices: EmberTensor
    counts: EmberTensor


class UniqueCounts(NamedTuple):
    """values and counts as in `UniqueAll`."""

    values: EmberTensor
    counts: EmberTensor


class UniqueInverse(NamedTuple):
    """values and inverse_indices as in `UniqueAll`."""

    values: EmberTensor
    inverse_indices: EmberTensor


@op(public="unique_values", vjp=CONSTANT)
def unique_parts(x):
    """Native form of `unique_all`: (values, indices, inverse_indices, counts), the last three int32."""
    ...


def unique_all(x: EmberTensor) -> UniqueAll:
    """The different values of x, where each occurs first, which one each element is, and how often each occurs."""
    return UniqueAll(*unique_parts(x))


def unique_counts(x: EmberTensor) -> UniqueCounts:
    """The different values of x in rising order, and how often each occurs."""
    values, _, _, counts = unique_parts(x)
    return UniqueCounts(values, counts)


def unique_inverse(x: EmberTensor) -> UniqueInverse:
    """The different values of x in rising order, and which one each element is."""
    values, _, inverse, _ = unique_parts(x)
    return UniqueInverse(values, inverse)


def unique_values(x: EmberTensor) -> EmberTensor:
    """The different values of x in rising order."""
    return unique_parts(x)[0]


def isin(x: EmberTensor, values: EmberTensor | float, invert: bool = False) -> EmberTensor:
    """Whether each element of x is among `values` (with `invert`: is not), as bool of x's shape."""
    if not isinstance(x, EmberTensor):
        found = some(equal(values, x))
    elif not isinstance(values, EmberTensor):
        found = equal(x, values)
    else:
        found = some(equal(expand_dims(x, -1), reshape(values, (-1,))), axis=-1)
    return logical_not(found) if invert else found


@op(public="searchsorted", vjp=CONSTANT)
def searchsorted_rows(x, values, *, right=False):
    """Native form of `searchsorted`: both of one dtype."""
    ...


def searchsorted(x: EmberTensor, values: EmberTensor | float, side: str = "left", sorter: EmberTensor | None = None) -> EmberTensor:
    """int32 places in the sorted vector x before which `values` keep it sorted; among equals the first ("left") or the last ("right").

    `sorter`: indices that sort x.
    """
    if x.ndim != 1:
        raise ShapeError(f"searchsorted: expected a vector to search in, got shape {x.shape}")
    if side not in ("left", "right"):
        raise ValueError(f"searchsorted: expected side 'left' or 'right', got {side!r}")
    if sorter is not None:
        x = take_axis(x, sorter, axis=0)
    if not isinstance(values, EmberTensor):
        values = full((), values, dtype=weak_result(x.dtype, values), like=x)
    common = promote(x.dtype, values.dtype)
    return searchsorted_rows(x.astype(common), values.astype(common), right=side == "right")
