"""Values of MLX arrays in NumPy, and the ops that go through it, on copies on the CPU, because MLX has nothing for them.

Those wait for their input, and cannot be compiled. Which they are: `ember_mlx.linalg`.
"""

from __future__ import annotations

import ml_dtypes
import mlx.core as mx
import numpy as np

from ember_ml.backend.numpy import backend as reference
from ember_ml.errors import UnsupportedOp

_NARROW = {"float64": "float32", "complex128": "complex64"}


def to_numpy(x: mx.array) -> np.ndarray:
    """A copy of the values; bfloat16, for which NumPy's buffers have no name, by its bits."""
    if x.dtype == mx.bfloat16:
        return np.array(x.view(mx.uint16)).view(ml_dtypes.bfloat16)
    return np.array(x)


def from_numpy(array: np.ndarray) -> mx.array:
    """The values in MLX, float64 and complex128 in the dtypes that MLX has instead."""
    array = np.asarray(array, order="C")                 # MLX reads no array with negative strides
    if array.dtype.name == "bfloat16":
        return mx.array(array.view(np.uint16)).view(mx.bfloat16)
    return mx.array(array.astype(_NARROW.get(array.dtype.name, array.dtype), copy=False))


def through_numpy(name: str):
    """The NumPy engine's function of the op of that name, for MLX arrays."""
    def call(*args, **kw):
        try:
            values = [to_numpy(a) if isinstance(a, mx.array) else a for a in args]
        except (ValueError, RuntimeError) as e:          # a compiled function has shapes and no values
            raise UnsupportedOp(f"{name}: goes through NumPy on MLX, so it needs values, which there are none of inside em.compile; "
                                "call it outside") from e
        out = reference.table[name](*values, **kw)
        return tuple(map(from_numpy, out)) if isinstance(out, tuple) else from_numpy(out)
    return call
