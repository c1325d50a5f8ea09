"""Ops that move elements and compute nothing: reshape, transpose, join, cut, pad, flip, repeat."""

from __future__ import annotations

from ember_ml.errors import AxisError, ShapeError
from ember_ml.ops.declare import op
from ember_ml.tensor import EmberTensor


@op(vjp=(lambda g, _y, x, _shape: reshape(g, x.shape),), ignores=("copy",))
def reshape(x, shape, *, copy=None):
    """The same elements in row-major order under another shape; one length may be -1. No tensor is a view: copy changes nothing."""
    ...


EmberTensor.reshape = lambda x, *shape: reshape(x, tuple(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int)
                                                else shape)


@op(vjp=(lambda g, _y, _x, axes: permute_dims(g, tuple(sorted(range(len(axes)), key=lambda i: axes[i]))),))
def permute_dims(x, axes):
    """Axes in the given order: y.shape[i] = x.shape[axes[i]]."""
    ...


def swap_axes(x: EmberTensor, a: int = -1, b: int = -2) -> EmberTensor:
    """x with two axes exchanged, by default the last two."""
    axes = list(range(x.ndim))
    axes[a], axes[b] = axes[b], axes[a]
    return permute_dims(x, tuple(axes))


EmberTensor.T = property(lambda x: permute_dims(x, tuple(reversed(range(x.ndim)))),
                         doc="The axes in reverse order.")
EmberTensor.mT = property(swap_axes, doc="The last two axes exchanged.")


@op(vjp=(lambda g, _y, _x, _shape: g,))
def broadcast_to(x, shape):
    """x repeated along new axes and axes of length one, to the given shape."""
    ...


def checked_axes(axis, ndim: int, name: str) -> tuple[int, ...]:
    """`axis` (an int, a tuple of ints, None for all) as different non-negative ints. Raises AxisError."""
    axes = tuple(range(ndim)) if axis is None else (axis,) if isinstance(axis, int) else tuple(axis)
    if any(not -ndim <= a < ndim for a in axes) or len({a % ndim for a in axes}) != len(axes):
        raise AxisError(f"{name}: expected different axes in [{-ndim}, {ndim - 1}], got {axis}")
    return tuple(a % ndim for a in axes)


def checked_axis(axis: int, ndim: int, name: str) -> int:
    """`axis` as a non-negative int. Raises AxisError."""
    if not -ndim <= axis < ndim:
        raise AxisError(f"{name}: expected an axis in [{-ndim}, {ndim - 1}], got {axis}")
    return axis % ndim


def expand_dims(x: EmberTensor, axis: int | tuple[int, ...]) -> EmberTensor:
    """x with new axes of length one at the places `axis` of the result."""
    if type(axis) is int and -x.ndim - 1 <= axis <= x.ndim:
        where = axis % (x.ndim + 1)
        return reshape(x, x.shape[:where] + (1,) + x.shape[where:])
    given = 1 if isinstance(axis, int) else len(axis)
    new, old = checked_axes(axis, x.ndim + given, "expand_dims"), iter(x.shape)
    return reshape(x, tuple(1 if i in new else next(old) for i in range(x.ndim + given)))


def squeeze(x: EmberTensor, axis: int | tuple[int, ...]) -> EmberTensor:
    """x without the axes `axis`. Raises ShapeError if the length of one is not one."""
    shape = x.shape
    gone = (checked_axis(axis, len(shape), "squeeze"),) if type(axis) is int else checked_axes(axis, len(shape), "squeeze")
    for i in sorted(gone, reverse=True):
        if shape[i] != 1:
            raise ShapeError(f"squeeze: expected an axis of length 1, got axis {axis} of shape {x.shape}")
        shape = shape[:i] + shape[i + 1:]
    return reshape(x, shape)


def _concat_grad(g, _y, *xs, axis=0):
    out, start = [], 0
    for x in xs:
        n = x.shape[axis]
        out.append(cut(g, start, start + n, axis=axis))
        start += n
    return out


@op(public="concat", rule="promote", vjp=_concat_grad)
def concat_all(*xs, axis=0):
    """The tensors one after the other along `axis`."""
    ...


def _listed(name: str, xs) -> list:
    if isinstance(xs, EmberTensor) or not hasattr(xs, "__iter__"):
        raise TypeError(f"{name}: expected a list of tensors, got one {type(xs).__name__}")
    xs = list(xs)
    if not xs:
        raise TypeError(f"{name}: expected a list of at least one tensor, got an empty one")
    return xs


def concat(xs, axis: int | None = 0) -> EmberTensor:
    """The tensors of a list, one after the other along an existing axis (None: flattened), in their common dtype."""
    xs = _listed("concat", xs)
    if axis is None:
        xs, axis = [reshape(x, (-1,)) for x in xs], 0
    return concat_all(*xs, axis=axis)


def stack(xs, axis: int = 0) -> EmberTensor:
    """The tensors of a list, all of one shape, along a new axis. Raises ShapeError for several shapes."""
    xs = _listed("stack", xs)
    if len({x.shape for x in xs}) > 1:
        raise ShapeError(f"stack: expected tensors of one shape, got {', '.join(str(x.shape) for x in xs)}")
    return concat_all(*[expand_dims(x, axis) for x in xs], axis=axis)


@op(vjp=(lambda g, _y, x, start, stop, *, axis=0:
         pad(g, tuple((start, x.shape[axis] - stop) if i == axis % x.ndim else (0, 0) for i in range(x.ndim))),))
def cut(x, start, stop, *, axis=0):
    """Elements start <= i < stop along one axis, with 0 <= start <= stop <= length."""
    ...


@op(public="split", vjp=lambda g, _y, _x, _sizes, *, axis=0: (concat_all(*g, axis=axis),))
def split_all(x, sizes, *, axis=0):
    """Native form of `split`, for lengths that add up."""
    out, start = [], 0
    for size in sizes:
        out.append(cut(x, start, start + size, axis=axis))
        start += size
    return tuple(out)


def split(x: EmberTensor, parts, axis: int = 0) -> tuple[EmberTensor, ...]:
    """x cut along `axis` into `parts` equal pieces, or into pieces of the given lengths.

    Raises ShapeError if the lengths do not add up.
    """
    n = x.shape[axis]
    sizes = (n // parts,) * parts if isinstance(parts, int) else tuple(parts)
    if sum(sizes) != n:
        raise ShapeError(f"split: expected lengths that add up to {n}, axis {axis} of shape {x.shape}; got {parts}")
    return split_all(x, sizes, axis=axis)


def _unpad(g, x, width):
    for axis, (before, _after) in enumerate(width):
        g = cut(g, before, before + x.shape[axis], axis=axis)
    return g


@op(vjp=(lambda g, _y, x, width: _unpad(g, x, width),))
def pad(x, width):
    """x with zeros around it; `width` holds one (before, after) per axis."""
    ...


@op(vjp=(lambda g, _y, _x, *, axis=None: flip(g, axis=axis),))
def flip(x, *, axis=None):
    """x in reverse order along an axis, a tuple of axes, or all of them for None."""
    ...


