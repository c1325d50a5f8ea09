"""Reading and writing by index: slices, take, gather, scatter, one-hot.

Python-int indices out of range raise on every engine. Tensor indices out of range raise on NumPy and under
`em.debug_checks()`; elsewhere they clamp, since some engines would read foreign memory.
"""

from __future__ import annotations

import operator
from contextlib import contextmanager
from contextvars import ContextVar

from ember_ml.errors import ShapeError, UnsupportedOp
from ember_ml.ops.creation import arange, tensor
from ember_ml.ops.declare import op
from ember_ml.ops.dispatch import CONSTANT
from ember_ml.ops.elementwise import clip, where
from ember_ml.ops.reduce import max as largest
from ember_ml.ops.reduce import min as smallest
from ember_ml.ops.shape import broadcast_to, checked_axis, expand_dims, reshape
from ember_ml.tensor import EmberTensor
from ember_ml.tensor.common import dtypes as dt
from ember_ml.tensor.common.dtypes import of_scalar
from ember_ml.tensor.common.index import Slot

#: which kinds of dtypes hold the values of which, roughly: equal or higher ones
_RANK = {"bool": 0, "uint": 1, "int": 1, "float": 2, "complex": 3}

_SCALARS = (bool, int, float, complex)

_debug: ContextVar[bool] = ContextVar("ember_debug_checks", default=False)


@contextmanager
def debug_checks(on: bool = True):
    """Inside `with em.debug_checks():`, tensor indices out of range raise on every engine (at the cost of a wait)."""
    token = _debug.set(on)
    try:
        yield
    finally:
        _debug.reset(token)


def checks_values(x: EmberTensor) -> bool:
    """Whether values of x are looked at before they are used: on NumPy, and everywhere under `debug_checks`."""
    return x.backend.name == "numpy" or _debug.get()


def checked_indices(name: str, indices: EmberTensor, length: int) -> EmberTensor:
    """Indices ready for an engine: checked where that is on, else clamped into [0, length - 1]; negatives count from the end.

    Raises IndexError naming the op, the range and the offending value; UnsupportedOp for indices that are no integers.
    """
    indices = check_indices(name, indices, length)
    return indices if indices.backend.name == "numpy" else bounded_indices(indices, length=length)


def check_indices(name: str, indices: EmberTensor, length: int) -> EmberTensor:
    """Indices as int32 or int64, checked where that is on. Raises as `checked_indices`."""
    if not indices.dtype.is_integer:
        raise UnsupportedOp(f"{name}: expected integer indices, got dtype {indices.dtype}; cast with .astype('int32')")
    if length == 0 and indices.size:                       # nothing to move them to
        raise IndexError(f"{name}: expected no indices into an axis of length 0, got {indices.size}")
    if checks_values(indices) and indices.size:
        low, high = smallest(indices).item(), largest(indices).item()
        if low < -length or high >= length:
            raise IndexError(f"{name}: expected indices in [{-length}, {length - 1}], got {low if low < -length else high}")
    if indices.dtype not in (dt.int32, dt.int64):
        return indices.astype(dt.int64)                    # narrow ones cannot hold every length, unsigned ones torch does not compare
    return indices


@op(vjp=CONSTANT)
def bounded_indices(indices, *, length):
    """int32 or int64 indices with negative ones counted from the end, and all moved into [0, length - 1]."""
    return clip(where(indices < 0, indices + length, indices), 0, length - 1)


@op(public="take", vjp=(lambda g, _y, x, indices, *, axis=0: scatter_add(x.zeros_like(), indices, g, axis=axis), None))
def take_axis(x, indices, *, axis=0):
    """Native form of `take`: indices of any shape take the place of `axis`; the caller has checked them."""
    ...


def take(x: EmberTensor, indices: EmberTensor, axis: int | None = 0) -> EmberTensor:
    """The elements of x at `indices` along `axis`: shape x.shape[:axis] + indices.shape + x.shape[axis + 1:].

    Args:
        x: any dtype.
        indices: integer tensor of any shape; negative values count from the end.

        axis: None stands for the only one.

    Raises IndexError for indices out of range, where they are checked (see the module); ShapeError for an axis that is not there.
    """
    if axis is None and x.ndim != 1:
        raise ShapeError(f"take: expected an axis for a tensor of shape {x.shape}, got None")
    axis = checked_axis(axis or 0, x.ndim, "take")
    return take_axis(x, checked_indices("take", indices, x.shape[axis]), axis=axis)


@op(vjp=(lambda g, _y, _x, _i, _u, *, axis=0: g, None, lambda g, _y, _x, i, _u, *, axis=0: take_axis(g, i, axis=axis)))
def scatter_add(x, indices, updates, *, axis=0):
    """x with `updates` added at `indices` along `axis`; equal indices add up. updates has `take`'s shape."""
    ...


@op(public="take_along_axis", vjp=(lambda g, _y, x, indices, *, axis: put_add_along_axis(x.zeros_like(), indices, g, axis=axis), None))
def gather_along(x, indices, *, axis):
    """Native form of `take_along_axis`; the caller has checked the indices."""
    ...


def take_along_axis(x: EmberTensor, indices: EmberTensor, axis: int = -1) -> EmberTensor:
    """y[..., j, ...] = x[..., indices[..., j, ...], ...] along `axis`; indices has x's other lengths (or 1)."""
    axis = checked_axis(axis, x.ndim, "take_along_axis")
    shape = tuple(indices.shape[i] if i == axis else n for i, n in enumerate(x.shape))
    indices = checked_indices("take_along_axis", broadcast_to(indices, shape), x.shape[axis])
    return gather_along(x, indices, axis=axis)


@op(vjp=(lambda g, _y, _x, _i, _u, *, axis: g, None, lambda g, _y, _x, i, _u, *, axis: gather_along(g, i, axis=axis)))
def put_add_along_axis(x, indices, updates, *, axis):
    """x with updates[..., j, ...] added at indices[..., j, ...] along `axis`; equal indices add up."""
    ...


@op(public="index", vjp=lambda g, _y, x, *tensors, index: (add_at(x.zeros_like(), g, *tensors, index=index),))
def get_at(x, *tensors, index):
    """x[index], where each `Slot(i)` in the static index stands for tensors[i]."""
    ...


@op(public="index", vjp=lambda g, _y, _x, v, *tensors, index: (set_at(g, v * 0, *tensors, index=index),
                                                                      get_at(g, *tensors, index=index)))
def set_at(x, values, *tensors, index):
    """x with x[index] replaced by `values`, which broadcast, as a new tensor in x's dtype."""
    ...


@op(vjp=lambda g, _y, _x, _v, *tensors, index: (g, get_at(g, *tensors, index=index)))
def add_at(x, values, *tensors, index):
    """x with `values` added at x[index]; equal indices add up."""
    ...


def _consumes(part) -> int:
    """The axes that a part of an index stands for."""
    if part is None or part is Ellipsis:
        return 0
    return part.ndim if isinstance(part, EmberTensor) and part.dtype.kind == "bool" else 1


def _parse(x: EmberTensor, index):
    """(static index with slots, tensors). Raises IndexError for Python ints out of range, TypeError for other things."""
    parts = index if isinstance(index, tuple) else (index,)
    used = sum(map(_consumes, parts))
    if used > x.ndim:
        raise IndexError(f"index: expected at most {x.ndim} indices for shape {x.shape}, got {used}")
    static, tensors, axis = [], [], 0
    for part in parts:
        if part is Ellipsis:
            if Ellipsis in static:
                raise IndexError("index: expected one ... at most, got more")
            axis = x.ndim - used + axis
            static.append(part)
        elif part is None or isinstance(part, slice):
            static.append(part)
        elif isinstance(part, EmberTensor):
            for found in _places(x, part, axis):
                static.append(Slot(len(tensors)))
                tensors.append(found)
        elif hasattr(part, "__index__") and not isinstance(part, bool) and not getattr(part, "ndim", 0):
            part = operator.index(part)
            if not -x.shape[axis] <= part < x.shape[axis]:
                raise IndexError(f"index: {part} is out of range for axis {axis} of shape {x.shape}")
            static.append(part)
        else:
            raise TypeError(f"index: expected ints, slices, None, ... or EmberTensors; got {type(part).__name__}; "
                            "wrap lists and arrays with em.tensor(...)")
        axis += _consumes(part)
    return tuple(static), tensors


def _places(x, part, axis) -> list[EmberTensor]:
    """A tensor in an index as the engine takes it: integers checked, a mask as it is or as the places where it holds."""
    if part.dtype.kind != "bool":
        return [checked_indices("index", part, x.shape[axis])]
    _check_mask(x, part, axis)
    return [part] if x.backend.masks else list(nonzero_places(part))


@op(public="nonzero", vjp=CONSTANT)
def nonzero_places(x):
    """Native form of `nonzero`, for a tensor with at least one axis."""
    ...


def nonzero(x: EmberTensor) -> tuple[EmberTensor, ...]:
    """int32 indices of the elements that are not zero, one tensor an axis, in row-major order. Values are waited for."""
    if x.ndim == 0:
        raise ShapeError("nonzero: expected a tensor with at least one axis, got a scalar tensor; reshape it to (1,)")
    return nonzero_places(x)


def _sole_mask(x: EmberTensor, key) -> EmberTensor | None:
    """The mask that is the whole index of x, on engines that take none."""
    (mask,) = key if isinstance(key, tuple) and len(key) == 1 else (key,)
    if not isinstance(mask, EmberTensor) or mask.dtype.kind != "bool":
        return None
    _check_mask(x, mask, 0)
    return mask


def _flat(x, mask):
    """x with one axis in place of those that the mask stands for."""
    return reshape(x, (mask.size, *x.shape[mask.ndim:]))


def _check_mask(x, mask, axis):
    if mask.shape != x.shape[axis:axis + mask.ndim]:
        raise IndexError(f"index: expected a mask of shape {x.shape[axis:axis + mask.ndim]} at axis {axis}, got {mask.shape}")


def _getitem(x: EmberTensor, key, /) -> EmberTensor:
    mask = None if x.backend.masks else _sole_mask(x, key)
    if mask is not None:
        return take_axis(_flat(x, mask), nonzero_places(reshape(mask, (-1,)))[0], axis=0)
    static, tensors = _parse(x, key)
    return get_at(x, *tensors, index=static)


def _setitem(x: EmberTensor, key, value, /):
    given = value.dtype if isinstance(value, EmberTensor) else of_scalar(value) if isinstance(value, _SCALARS) else x.dtype
    if _RANK[given.kind] > _RANK[x.dtype.kind]:
        raise TypeError(f"index: expected values that {x.dtype} can hold, got {given}; cast one side with .astype(...)")
    if not isinstance(value, EmberTensor):
        value = tensor(value, dtype=x.dtype, like=x)
    mask, value = None if x.backend.masks else _sole_mask(x, key), value.astype(x.dtype)
    if mask is None:
        static, tensors = _parse(x, key)
        new = set_at(x, value, *tensors, index=static)
    elif value.ndim == 0:
        new = where(reshape(mask, mask.shape + (1,) * (x.ndim - mask.ndim)), value, x)
    else:
        places = nonzero_places(reshape(mask, (-1,)))[0]
        new = reshape(set_at(_flat(x, mask), value, places, index=(Slot(0),)), x.shape)
    x.data, x.node = new.data, new.node


EmberTensor.__getitem__ = _getitem
EmberTensor.__setitem__ = _setitem


def one_hot(indices: EmberTensor, classes: int, dtype="float32") -> EmberTensor:
    """1 where the last axis's index equals the value of `indices`, else 0 (also where that is no class): shape indices.shape + (classes,).

    Raises UnsupportedOp for indices that are no integers.
    """
    if not indices.dtype.is_integer:
        raise UnsupportedOp(f"one_hot: expected integer indices, got dtype {indices.dtype}; cast with .astype('int32')")
    row = arange(classes, dtype=indices.dtype, like=indices)
    return (expand_dims(indices, -1) == row).astype(dtype)
