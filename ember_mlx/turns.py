"""A call for some heads after the others, so that the workspaces of all need not be there at once."""

from __future__ import annotations

import mlx.core as mx


def in_turns(compute, some: int, axes: tuple[int, ...], rows: dict, filters: dict, masks: dict) -> tuple:
    """`compute(**arrays)`, by `some` heads at a time, its outputs joined along their `axes`.

    Heads are independent, so that the bits are those of one call. Lazy: a turn waits for the results of the one before, without
    which MLX might begin all of them first.

    Args:
        compute: takes the arrays of all dicts by name, for any heads, and returns a tuple, with None for what is not there.
        rows: (B, H head_dim, L) arrays, filters: (H, ...), masks: (B, H); None for what is not there.
    """
    (channels, *_), (heads, *_) = ([x.shape[axis] for x in arrays.values() if x is not None] for arrays, axis in ((rows, 1), (filters, 0)))
    if some >= heads:
        return compute(**rows, **filters, **masks)
    width, parts = channels // heads, []
    for first in range(0, heads, some):
        own, its = slice(first, first + some), slice(first * width, (first + some) * width)
        given = {**{n: x[:, its] for n, x in _there(rows)}, **{n: x[own] for n, x in _there(filters)}, **{n: x[:, own] for n, x in _there(masks)}}
        if parts:
            given |= {n: mx.depends([given[n]], [x for x in parts[-1] if x is not None])[0] for n, _ in _there(rows)}
        parts.append(compute(**{n: None for arrays in (rows, filters, masks) for n in arrays} | given))
    return tuple(None if found[0] is None else mx.concatenate(found, axis=axis) for axis, found in zip(axes, zip(*parts)))


def _there(arrays: dict) -> list:
    return [(name, x) for name, x in arrays.items() if x is not None]
