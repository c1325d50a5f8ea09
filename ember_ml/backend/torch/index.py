"""Indexing on torch: what is read at places, written there and added."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ember_ml.tensor.common.index import fill


def _slices(index, tensors):
    """The filled index; torch wants int64 index tensors."""
    return fill(index, [t if t.dtype is torch.bool else t.long() for t in tensors])


def _get_at(x, *tensors, index):
    x, index = _flip_negative_steps(x, index)
    return x[_slices(index, tensors)]


def _flip_negative_steps(x, index):
    """torch refuses slices with a negative step: the axis is turned round instead."""
    if not any(isinstance(part, slice) and (part.step or 1) < 0 for part in index):
        return x, index
    out, axis = [], 0
    used = sum(part is not None and part is not Ellipsis for part in index)
    for part in index:
        if part is Ellipsis:
            axis += x.ndim - used
        elif part is not None:
            if isinstance(part, slice) and (part.step or 1) < 0:
                n = x.shape[axis]
                picked = range(n)[part]
                x = torch.flip(x, (axis,))
                part = slice(n - 1 - picked[0], n - picked[-1], -picked.step) if len(picked) else slice(0, 0)
            axis += 1
        out.append(part)
    return x, tuple(out)


def _set_at(x, values, *tensors, index):
    out = x.clone()
    if any(isinstance(part, slice) and (part.step or 1) < 0 for part in index):
        where = _get_at(torch.arange(x.numel(), device=x.device).reshape(x.shape), *tensors, index=index)
        return out.reshape(-1).index_put((where.reshape(-1),), values.expand(where.shape).reshape(-1)).reshape(x.shape)
    out[_slices(index, tensors)] = values
    return out


def _add_at(x, values, *tensors, index):
    where = _get_at(torch.arange(x.numel(), device=x.device).reshape(x.shape), *tensors, index=index)
    return x.reshape(-1).index_add(0, where.reshape(-1), values.expand(where.shape).reshape(-1)).reshape(x.shape)


def _take(x, indices, axis=0):
    if axis == 0 and x.ndim == 2 and not x.is_complex():     # torch's embedding has no gradient for complex numbers
        return F.embedding(indices.long(), x)
    out = torch.index_select(x, axis, indices.long().reshape(-1))
    return out.reshape(x.shape[:axis] + indices.shape + x.shape[axis + 1:])


def _scatter_add(x, indices, updates, axis=0):
    rows = updates.reshape(x.shape[:axis] + (indices.numel(),) + x.shape[axis + 1:])
    return torch.index_add(x, axis, indices.long().reshape(-1), rows.to(x.dtype))


def _bounded_indices(indices, length):
    """The remainder counts negative ones from the end, once those before the first are moved there."""
    return indices.clamp(-length, length - 1).remainder(max(length, 1))


TABLE = {
    "get_at": _get_at, "set_at": _set_at, "add_at": _add_at, "take_axis": _take, "scatter_add": _scatter_add,
    "gather_along": lambda x, i, axis: torch.take_along_dim(x, i.long(), axis),
    "put_add_along_axis": lambda x, i, u, axis: torch.scatter_add(x, axis, i.long(), u.to(x.dtype)),
    "bounded_indices": _bounded_indices,
}
