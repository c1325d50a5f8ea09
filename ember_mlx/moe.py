"""Mixture of experts on MLX without a GPU: NumPy's loop over experts, on MLX's own memory.

On a CPU MLX's grouped products are one small product per block of rows, in MLX's BLAS, which on Linux is a reference one. The loop needs the
offsets and so waits for its input; inside a compiled step, where there is nothing to wait for, the grouped products compute.
"""

from __future__ import annotations

import ml_dtypes
import mlx.core as mx
import numpy as np

from ember_ml.backend.numpy import moe as loop
from ember_mlx.host import from_numpy


def _view(x):
    """The memory of x in NumPy. Only what `_Memory` has made is written."""
    if not isinstance(x, mx.array):
        return x
    return np.array(x.view(mx.uint16), copy=False).view(ml_dtypes.bfloat16) if x.dtype == mx.bfloat16 else np.array(x, copy=False)


class _Memory:
    """Arrays that NumPy writes and MLX owns, so that no large result is copied."""

    def __init__(self):
        self.owners: dict[int, tuple] = {}

    def empty(self, shape, dtype):
        owner = mx.zeros(shape, getattr(mx, np.dtype(dtype).name))
        view = np.array(owner, copy=False)
        self.owners[id(view)] = owner, view
        return view

    def native(self, array):
        owner, _ = self.owners.get(id(array), (None, None))
        return from_numpy(array) if owner is None else owner


def _without_filling(order, inverse, offsets):
    """A plan of blocks as one without the rows that fill them up."""
    real = order < inverse.size
    before = np.concatenate([[0], np.cumsum(real)]).astype(np.int32)
    return order[real], before[inverse], before[offsets]


def _on_mlx(fn, plan_at):
    def call(*args, **kw):
        mx.eval([a for a in args if a is not None])
        views, memory = [_view(a) for a in args], _Memory()
        outputs = fn(*views[:plan_at], *_without_filling(*views[plan_at:]), **kw, empty=memory.empty)
        return tuple(memory.native(y) for y in outputs)
    return call


TABLE = {"moe_mlp_host": _on_mlx(loop.moe_mlp_host, 6), "moe_mlp_grad": _on_mlx(loop.moe_mlp_grad, 8)}
