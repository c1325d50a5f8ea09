"""Whole arrangements made of the ops of `shape`: turned, tiled, moved, unstacked and broadcast against each other."""

from __future__ import annotations

from ember_ml.errors import ShapeError
from ember_ml.ops.creation import arange, tensor
from ember_ml.ops.elementwise import where
from ember_ml.ops.index import take
from ember_ml.ops.shape import (
    broadcast_to, checked_axes, checked_axis, concat, cut, expand_dims, permute_dims, reshape, split, squeeze, swap_axes,
)
from ember_ml.tensor import EmberTensor


def matrix_transpose(x: EmberTensor) -> EmberTensor:
    """x with its last two axes exchanged."""
    if x.ndim < 2:
        raise ShapeError(f"matrix_transpose: expected at least two axes, got shape {x.shape}")
    return swap_axes(x)


def moveaxis(x: EmberTensor, source: int | tuple[int, ...], destination: int | tuple[int, ...]) -> EmberTensor:
    """x with the axes `source` at the places `destination`; the others keep their order."""
    source, destination = checked_axes(source, x.ndim, "moveaxis"), checked_axes(destination, x.ndim, "moveaxis")
    if len(source) != len(destination):
        raise ShapeError(f"moveaxis: expected as many sources as destinations, got {len(source)} and {len(destination)}")
    order = [i for i in range(x.ndim) if i not in source]
    for place, axis in sorted(zip(destination, source)):
        order.insert(place, axis)
    return permute_dims(x, tuple(order))


def roll(x: EmberTensor, shift: int | tuple[int, ...], axis: int | tuple[int, ...] | None = None) -> EmberTensor:
    """x moved on by `shift` places along `axis`, what leaves at the end coming in in front; None: flattened, then as before."""
    if axis is None:
        return reshape(roll(reshape(x, (-1,)), shift, 0), x.shape)
    axes = (axis,) if isinstance(axis, int) else tuple(axis)     # an axis may be named twice: its shifts add up
    shifts = (shift,) * len(axes) if isinstance(shift, int) else tuple(shift)
    if len(shifts) != len(axes):
        raise ShapeError(f"roll: expected a shift per axis, got {len(shifts)} shifts and {len(axes)} axes")
    for by, a in zip(shifts, axes):
        a = checked_axis(a, x.ndim, "roll")
        n = x.shape[a]
        if n and by % n:
            x = concat([cut(x, n - by % n, n, axis=a), cut(x, 0, n - by % n, axis=a)], axis=a)
    return x


def repeat(x: EmberTensor, repeats: int | EmberTensor, axis: int | None = None) -> EmberTensor:
    """Each element `repeats` times in a row along `axis`; None: of the flattened tensor.

    A tensor of counts, one per element along the axis or one for all, decides the result's shape: its values are waited for.
    """
    if axis is None:
        x, axis = reshape(x, (-1,)), 0
    axis = checked_axis(axis, x.ndim, "repeat")
    if isinstance(repeats, EmberTensor):
        counts = repeats.tolist() if repeats.ndim else [repeats.item()]
        counts = counts * x.shape[axis] if len(counts) == 1 else counts
        if len(counts) != x.shape[axis]:
            raise ShapeError(f"repeat: expected {x.shape[axis]} counts for axis {axis} of shape {x.shape}, got {len(counts)}")
        places = [i for i, n in enumerate(counts) for _ in range(n)]
        return take(x, tensor(places, dtype="int32", like=x), axis=axis) if x.shape[axis] else x
    opened = expand_dims(x, axis + 1)
    shape = x.shape[:axis + 1] + (repeats,) + x.shape[axis + 1:]
    return reshape(broadcast_to(opened, shape), x.shape[:axis] + (x.shape[axis] * repeats,) + x.shape[axis + 1:])


def tile(x: EmberTensor, repetitions: tuple[int, ...]) -> EmberTensor:
    """Copies of x side by side, `repetitions` of them along each axis; the shorter of shape and repetitions gets ones in front."""
    ndim = max(x.ndim, len(repetitions))
    shape = (1,) * (ndim - x.ndim) + x.shape
    times = (1,) * (ndim - len(repetitions)) + tuple(repetitions)
    opened = reshape(x, tuple(n for length in shape for n in (1, length)))
    wide = broadcast_to(opened, tuple(n for pair in zip(times, shape) for n in pair))
    return reshape(wide, tuple(t * n for t, n in zip(times, shape)))


def unstack(x: EmberTensor, axis: int = 0) -> tuple[EmberTensor, ...]:
    """The pieces of x along `axis`, without that axis."""
    axis = checked_axis(axis, x.ndim, "unstack")
    return tuple(squeeze(piece, axis) for piece in split(x, x.shape[axis], axis)) if x.shape[axis] else ()


def broadcast_shapes(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that these broadcast to. Raises ShapeError if they do not."""
    out = [1] * max(map(len, shapes), default=0)
    for shape in shapes:
        for i, n in enumerate(reversed(shape), 1):
            if out[-i] != n and out[-i] != 1 and n != 1:
                raise ShapeError(f"broadcast_shapes: expected shapes that broadcast, got {', '.join(map(str, shapes))}")
            out[-i] = n if out[-i] == 1 else out[-i]
    return tuple(out)


def broadcast_arrays(*xs: EmberTensor) -> tuple[EmberTensor, ...]:
    """The tensors, all broadcast to their common shape."""
    shape = broadcast_shapes(*(x.shape for x in xs))
    return tuple(x if x.shape == shape else broadcast_to(x, shape) for x in xs)


def meshgrid(*xs: EmberTensor, indexing: str = "xy") -> tuple[EmberTensor, ...]:
    """Coordinates of a grid from those of its axes, one tensor an axis, all of the grid's shape.

    indexing "ij" orders the grid's axes as given; "xy" exchanges the first two.
    """
    if indexing not in ("xy", "ij"):
        raise ValueError(f"meshgrid: expected indexing 'xy' or 'ij', got {indexing!r}")
    order = list(range(len(xs)))
    if indexing == "xy" and len(xs) > 1:
        order[:2] = 1, 0
    opened = [reshape(x, tuple(-1 if order[i] == j else 1 for j in range(len(xs)))) for i, x in enumerate(xs)]
    return broadcast_arrays(*opened)


def _triangle(x, keep):
    if x.ndim < 2:
        raise ShapeError(f"tril, triu: expected at least two axes, got shape {x.shape}")
    rows, columns = (arange(n, like=x) for n in x.shape[-2:])
    return where(keep(expand_dims(columns, 0) - expand_dims(rows, 1)), x, x.zeros_like())


def tril(x: EmberTensor, k: int = 0) -> EmberTensor:
    """x with zeros above its k-th diagonal, over the last two axes."""
    return _triangle(x, lambda above: above <= k)


def triu(x: EmberTensor, k: int = 0) -> EmberTensor:
    """x with zeros below its k-th diagonal, over the last two axes."""
    return _triangle(x, lambda above: above >= k)
