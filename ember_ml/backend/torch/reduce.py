"""Sums, products and other reductions on torch, whole and running."""

from __future__ import annotations

import math

import torch

from ember_ml.tensor.common import dtypes as dt


def _axes(x, axis):
    return tuple(range(x.ndim)) if axis is None else axis


def _reduce(fn):
    def call(x, axis=None, keepdims=False):
        axis = _axes(x, axis)
        return fn(x, axis, keepdim=keepdims) if axis != () else fn(x.unsqueeze(0), 0)     # no axes: of each element alone
    return call


#: torch adds and multiplies none of these: they are formed as int64, whose lower bits are theirs
_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)

#: dtype of a sum or product of each dtype
_ACCUMULATED = {getattr(torch, d.name): getattr(torch, dt.accumulator(d).name) for d in dt.ALL}


def _formed_in(x, dtype):
    """(dtype of a sum or product, dtype that torch forms it in)."""
    native = _ACCUMULATED[x.dtype] if dtype is None else getattr(torch, dt.dtype(dtype).name)
    return native, torch.int64 if native in _UNSIGNED else native


def _sum(x, axis=None, dtype=None, keepdims=False):
    if dtype is None and x.dtype.is_floating_point and axis != ():
        return torch.sum(x, _axes(x, axis), keepdim=keepdims)
    native, wide = _formed_in(x, dtype)
    return torch.sum(x.to(wide), _axes(x, axis), keepdim=keepdims, dtype=wide).to(native) if axis != () else x.to(native)


def _place_of(fn):
    def call(x, axis=None, keepdims=False):
        if axis is None:
            place = fn(x).to(torch.int32)
            return place.reshape((1,) * x.ndim) if keepdims else place
        return fn(x, axis, keepdim=keepdims).to(torch.int32)
    return call


def _prod(x, axis=None, dtype=None, keepdims=False):
    """torch.prod takes one axis: the others are brought behind it."""
    native, wide = _formed_in(x, dtype)
    axes = sorted(a % x.ndim for a in ((axis,) if isinstance(axis, int) else _axes(x, axis)))
    kept = [i for i in range(x.ndim) if i not in axes]
    flat = x.permute((*kept, *axes)).reshape([x.shape[i] for i in kept] + [math.prod(x.shape[i] for i in axes)])
    y = torch.prod(flat.to(wide), -1, dtype=wide).to(native)
    return y.reshape([1 if i in axes else n for i, n in enumerate(x.shape)]) if keepdims else y


def _running(fn):
    def call(x, axis=0):
        wide = torch.int64 if x.dtype in _UNSIGNED else x.dtype
        return fn(x.to(wide), axis, dtype=wide).to(x.dtype)
    return call


TABLE = {
    "sum": _sum, "prod": _prod, "mean": _reduce(torch.mean), "max": _reduce(torch.amax), "min": _reduce(torch.amin),
    "argmax": _place_of(torch.argmax), "argmin": _place_of(torch.argmin),
    "all": _reduce(lambda x, axis, keepdim=False: torch.all(x.bool(), axis, keepdim=keepdim)),
    "any": _reduce(lambda x, axis, keepdim=False: torch.any(x.bool(), axis, keepdim=keepdim)),
    "logsumexp": lambda x, axis=-1, keepdims=False: torch.logsumexp(x, _axes(x, axis), keepdim=keepdims),
    "cumsum": _running(torch.cumsum), "cumprod": _running(torch.cumprod),
    "cummax": lambda x, axis=0: torch.cummax(x, axis).values,
    "cumlogsumexp": lambda x, axis=0: torch.logcumsumexp(x, axis),
}
