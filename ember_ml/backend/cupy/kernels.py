"""Launches Ember's CUDA kernels through cupy.RawModule, on the current device and stream.

Functions take and return cupy.ndarrays. NVRTC compiles a file once per dtype; CuPy keeps the result on disk.
"""

from __future__ import annotations

from functools import cache

import cupy

from ember_ml.kernels import LANES, THREADS, row_block, source_text
from ember_ml.kernels.moe import BACKWARD_ROWS, BACKWARD_WEIGHTS, FORWARD
from ember_ml.kernels.spec import Entry

_C_TYPES = {"float32": "float", "float16": "__half", "bfloat16": "__nv_bfloat16"}

#: entries of each file, all compiled together
_ENTRIES = {"moe": (FORWARD, BACKWARD_ROWS, BACKWARD_WEIGHTS)}


@cache
def _module(stem: str, c_type: str):
    names = [f"{entry.name}<{c_type}>" for entry in _ENTRIES[stem]]
    return cupy.RawModule(code=source_text("cuda", stem), options=("-std=c++17",), name_expressions=names)


def _launch(entry: Entry, inputs, threads, group, output):
    """Fills `output`, by `threads` (x, y) in blocks of `group` (x, y).

    Raises UnsupportedDtype if the kernel does not take the inputs' dtypes.
    """
    c_type = _C_TYPES[entry.own_dtype([str(array.dtype) for array in inputs])]
    inputs = [cupy.ascontiguousarray(array) for array in inputs]
    shapes = {name: array.shape for name, array in zip(entry.input_names, inputs)}
    sizes = [cupy.uint32(shapes[name][axis]) for name, axis in entry.sizes]
    # blockIdx.x counts along y, see cuda/*.cu
    grid = tuple(-(-n // size) for n, size in zip(reversed(threads), reversed(group)))
    kernel = _module(entry.stem, c_type).get_function(f"{entry.name}<{c_type}>")
    kernel(grid, group, (*inputs, output, *sizes))
    return output


def moe_combine(expert_out: cupy.ndarray, inverse: cupy.ndarray, weights: cupy.ndarray) -> cupy.ndarray:
    """y[t] = sum_k weights[t, k] expert_out[inverse[t, k]].

    Args:
        expert_out: (N, D), float32, float16 or bfloat16. inverse: (T, K), int32. weights: (T, K), float32.

    Returns: (T, D) in expert_out's dtype, summed in float32. Indices out of range are moved to the nearest row.

    Raises UnsupportedDtype for other dtypes.
    """
    shape = (inverse.shape[0], expert_out.shape[1])
    if expert_out.size == 0 or inverse.size == 0:          # CUDA launches no empty grids
        return cupy.zeros(shape, expert_out.dtype)
    width = shape[1]
    return _launch(FORWARD, [expert_out, inverse, weights], (width, shape[0]), row_block(width),
                   cupy.empty(shape, expert_out.dtype))


def moe_combine_backward(g: cupy.ndarray, expert_out: cupy.ndarray, inverse: cupy.ndarray,
                         weights: cupy.ndarray) -> tuple[cupy.ndarray, cupy.ndarray]:
    """Gradients of `moe_combine` for its output's gradient g (T, D), which has expert_out's dtype.

    Returns: d_expert_out (N, D) in expert_out's dtype, zero in rows that no pair owns; d_weights (T, K), float32.
    An index out of range owns no row: its part of d_expert_out is dropped.

    Raises UnsupportedDtype for other dtypes.
    """
    d_expert_out = cupy.zeros(expert_out.shape, expert_out.dtype)
    if expert_out.size == 0 or inverse.size == 0:
        return d_expert_out, cupy.zeros(weights.shape, cupy.float32)
    (_, width), pairs = expert_out.shape, inverse.size
    _launch(BACKWARD_ROWS, [g, expert_out, inverse, weights], (width, pairs), row_block(width), d_expert_out)
    d_weights = _launch(BACKWARD_WEIGHTS, [g, expert_out, inverse], (LANES, pairs), (LANES, THREADS // LANES),
                        cupy.empty(weights.shape, cupy.float32))
    return d_expert_out, d_weights


#: launcher by the name of its KernelSpec
KERNELS = {"moe_combine": moe_combine, "moe_combine_backward": moe_combine_backward}
