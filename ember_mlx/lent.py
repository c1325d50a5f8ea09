"""MLX's own memory, lent to functions of the NumPy engine, on a CPU and outside of compiled steps.

They wait for their input, so a compiled step, where there is nothing to wait for, needs another form of what they compute.
"""

from __future__ import annotations

import ml_dtypes
import mlx.core as mx
import numpy as np

from ember_mlx.host import from_numpy


def at_hand(arrays) -> bool:
    """Whether the arrays have values, for which they are computed. Not on a GPU, nor where one is only recorded (mx.compile, mx.vmap)."""
    if mx.default_device() != mx.cpu:
        return False
    try:
        mx.eval(arrays)
    except ValueError:
        return False
    return True


def view(x):
    """The memory of an array that is computed, in NumPy; other things as they are. Only what `Results` has made is written."""
    if not isinstance(x, mx.array):
        return x
    return np.array(x.view(mx.uint16), copy=False).view(ml_dtypes.bfloat16) if x.dtype == mx.bfloat16 else np.array(x, copy=False)


class Results:
    """Arrays that NumPy writes and MLX owns, so that no large result is copied."""

    def __init__(self):
        self.owners: dict[int, tuple] = {}

    def empty(self, shape, dtype):
        owner = mx.zeros(shape, getattr(mx, np.dtype(dtype).name))
        array = np.array(owner, copy=False)
        self.owners[id(array)] = owner, array
        return array

    def native(self, array):
        """The owner of an array made here; of others a copy."""
        owner, _ = self.owners.get(id(array), (None, None))
        return from_numpy(array) if owner is None else owner
