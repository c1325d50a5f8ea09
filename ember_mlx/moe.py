"""Mixture of experts on MLX without a GPU: NumPy's loop over experts, on MLX's own memory.

On a CPU MLX's grouped products are one small product per block of rows, in MLX's BLAS, which on Linux is a reference one. The loop needs the
offsets and so waits for its input; inside a compiled step, where there is nothing to wait for, the grouped products compute.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from ember_ml.backend.numpy import moe as loop
from ember_mlx.lent import Results, view


def _without_filling(order, inverse, offsets):
    """A plan of blocks as one without the rows that fill them up."""
    real = order < inverse.size
    before = np.concatenate([[0], np.cumsum(real)]).astype(np.int32)
    return order[real], before[inverse], before[offsets]


def _on_mlx(fn, plan_at):
    def call(*args, **kw):
        mx.eval([a for a in args if a is not None])
        views, results = [view(a) for a in args], Results()
        outputs = fn(*views[:plan_at], *_without_filling(*views[plan_at:]), **kw, empty=results.empty)
        return tuple(results.native(y) for y in outputs)
    return call


TABLE = {"moe_mlp_host": _on_mlx(loop.moe_mlp_host, 6), "moe_mlp_grad": _on_mlx(loop.moe_mlp_grad, 8)}
