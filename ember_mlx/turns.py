"""A call for some heads after the others, so that the workspaces of all need not be there at once."""

from __future__ import annotations

import mlx.core as mx


def in_turns(compute, some: int, few: int, axes: tuple[int, ...], rows: dict, filters: dict, masks: dict) -> tuple:
    """`compute(**arrays)`, by `some` heads and `few` rows of each at a time, its outputs joined along the batch and their `axes`.

    Heads, and rows if they are fewer than the batch, are independent, so that the bits are those of one call. Lazy: a turn waits for
    the results of the one before, without which MLX might begin all of them first.

    Args:
        compute: takes the arrays of all dicts by name, for any heads, and returns a tuple, with None for what is not there.
        rows: (B, H head_dim, L) arrays, filters: (H, ...), masks: (B, H); None for what is not there.
    """
    (batch, channels, _), (heads, *_) = (next(x.shape for x in arrays.values() if x is not None) for arrays in (rows, filters))
    if some >= heads and few >= batch:
        return compute(**rows, **filters, **masks)
    width, before, parts = channels // heads, [], []
    for first in range(0, heads, some):
        own, its, parts_of_batch = slice(first, first + some), slice(first * width, (first + some) * width), []
        for start in range(0, batch, few):
            b = slice(start, start + few)
            given = {**_cut(rows, b, its), **_cut(filters, own), **_cut(masks, b, own)}
            if before:
                given |= {n: mx.depends([given[n]], before)[0] for n, x in rows.items() if x is not None}
            found = compute(**given)
            before = [x for x in found if x is not None]
            parts_of_batch.append(found)
        parts.append([_joined(of_all, 0) for of_all in zip(*parts_of_batch)])
    return tuple(_joined(of_all, axis) for axis, of_all in zip(axes, zip(*parts)))


def _cut(arrays: dict, *place: slice) -> dict:
    return {name: None if x is None else x[place] for name, x in arrays.items()}


def _joined(parts, axis: int) -> mx.array | None:
    return parts[0] if len(parts) == 1 or parts[0] is None else mx.concatenate(parts, axis=axis)
