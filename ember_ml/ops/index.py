"""Reading and writing by index: slices, take, gather, scatter, one-hot.

Python-int indices out of range raise on every engine. Tensor indices out of range raise on NumPy and under
`em.debug_checks()`; elsewhere they clamp, since some engines would read foreign memory.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar

from ember_ml.errors import UnsupportedOp
from ember_ml.ops.creation import arange, tensor
from ember_ml.ops.declare import op
from ember_ml.ops.elementwise import clip, where
from ember_ml.ops.reduce import max as largest
from ember_ml.ops.reduce import min as smallest
from ember_ml.ops.shape import broadcast_to, expand_dims
from ember_ml.tensor import EmberTensor
from ember_ml.tensor.common.index import Slot

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
    if not indices.dtype.is_integer:
        raise UnsupportedOp(f"{name}: expected integer indices, got dtype {indices.dtype}; cast with .astype('int32')")
    if checks_values(indices) and indices.size:
        low, high = smallest(indices).item(), largest(indices).item()
        if low < -length or high >= length:
            raise IndexError(f"{name}: expected indices in [{-length}, {length - 1}], got {low if low < -length else high}")
    if indices.backend.name == "numpy":
        return indices
    return clip(where(indices < 0, indices + length, indices), low=0, high=length - 1)


@op(vjp=(lambda g, _y, x, indices, *, axis=0: scatter_add(x.zeros_like(), indices, g, axis=axis), None))
def take_axis(x, indices, *, axis=0):
    """Native form of `take`: indices of any shape take the place of `axis`; the caller has checked them."""
    ...


def take(x: EmberTensor, indices: EmberTensor, axis: int = 0) -> EmberTensor:
    """The elements of x at `indices` along `axis`: shape x.shape[:axis] + indices.shape + x.shape[axis + 1:].

    Args:
        x: any dtype.
        indices: integer tensor of any shape; negative values count from the end.

    Raises IndexError for indices out of range, where they are checked (see the module).
    """
    axis %= x.ndim
    return take_axis(x, checked_indices("take", indices, x.shape[axis]), axis=axis)


@op(vjp=(lambda g, _y, _x, _i, _u, *, axis=0: g, None, lambda g, _y, _x, i, _u, *, axis=0: take_axis(g, i, axis=axis)))
def scatter_add(x, indices, updates, *, axis=0):
    """x with `updates` added at `indices` along `axis`; equal indices add up. updates has `take`'s shape."""
    ...


@op(vjp=(lambda g, _y, x, indices, *, axis: put_add_along_axis(x.zeros_like(), indices, g, axis=axis), None))
def gather_along(x, indices, *, axis):
    """Native form of `take_along_axis`; the caller has checked the indices."""
    ...


def take_along_axis(x: EmberTensor, indices: EmberTensor, axis: int) -> EmberTensor:
    """y[..., j, ...] = x[..., indices[..., j, ...], ...] along `axis`; indices has x's other lengths (or 1)."""
    axis %= x.ndim
    shape = tuple(indices.shape[i] if i == axis else n for i, n in enumerate(x.shape))
    indices = checked_indices("take_along_axis", broadcast_to(indices, shape), x.shape[axis])
    return gather_along(x, indices, axis=axis)


@op(vjp=(lambda g, _y, _x, _i, _u, *, axis: g, None, lambda g, _y, _x, i, _u, *, axis: gather_along(g, i, axis=axis)))
def put_add_along_axis(x, indices, updates, *, axis):
    """x with updates[..., j, ...] added at indices[..., j, ...] along `axis`; equal indices add up."""
    ...


@op(vjp=lambda g, _y, x, *tensors, index: (add_at(x.zeros_like(), g, *tensors, index=index),))
def get_at(x, *tensors, index):
    """x[index], where each `Slot(i)` in the static index stands for tensors[i]."""
    ...


@op(vjp=lambda g, _y, _x, v, *tensors, index: (set_at(g, v * 0, *tensors, index=index),
                                                                      get_at(g, *tensors, index=index)))
def set_at(x, values, *tensors, index):
    """x with x[index] replaced by `values`, which broadcast, as a new tensor in x's dtype."""
    ...


@op(vjp=lambda g, _y, _x, _v, *tensors, index: (g, get_at(g, *tensors, index=index)))
def add_at(x, values, *tensors, index):
    """x with `values` added at x[index]; equal indices add up."""
    ...


def _parse(x: EmberTensor, index):
    """(static index with slots, tensors). Raises IndexError for Python ints out of range, TypeError for other things."""
    parts = index if isinstance(index, tuple) else (index,)
    used = sum(p is not None and p is not Ellipsis for p in parts)
    static, tensors, axis = [], [], 0
    for part in parts:
        if part is Ellipsis:
            axis = x.ndim - (used - sum(p is not None and p is not Ellipsis for p in static))
            static.append(part)
            continue
        if part is None:
            static.append(part)
            continue
        if axis >= x.ndim:
            raise IndexError(f"index: expected at most {x.ndim} indices for shape {x.shape}, got {used}")
        if isinstance(part, EmberTensor):
            if part.dtype.is_integer:
                part = checked_indices("index", part, x.shape[axis])
            static.append(Slot(len(tensors)))
            tensors.append(part)
        elif isinstance(part, slice):
            static.append(part)
        elif isinstance(part, int) and not isinstance(part, bool):
            if not -x.shape[axis] <= part < x.shape[axis]:
                raise IndexError(f"index: {part} is out of range for axis {axis} of shape {x.shape}")
            static.append(part)
        else:
            raise TypeError(f"index: expected ints, slices, None, ... or EmberTensors; got {type(part).__name__}; "
                            "wrap lists and arrays with em.tensor(...)")
        axis += 1
    return tuple(static), tensors


def _getitem(x: EmberTensor, index) -> EmberTensor:
    static, tensors = _parse(x, index)
    return get_at(x, *tensors, index=static)


def _setitem(x: EmberTensor, index, values):
    static, tensors = _parse(x, index)
    if not isinstance(values, EmberTensor):
        values = tensor(values, dtype=x.dtype, like=x)
    new = set_at(x, values.astype(x.dtype), *tensors, index=static)
    x.data, x.node = new.data, new.node


EmberTensor.__getitem__ = _getitem
EmberTensor.__setitem__ = _setitem


def one_hot(indices: EmberTensor, classes: int, dtype="float32") -> EmberTensor:
    """1 where the last axis's index equals the value of `indices`, else 0: shape indices.shape + (classes,)."""
    row = arange(classes, dtype=indices.dtype, like=indices)
    return (expand_dims(indices, -1) == row).astype(dtype)
