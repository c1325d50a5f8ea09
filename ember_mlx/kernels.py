"""Launches Ember's Metal kernels through mx.fast.metal_kernel. Functions take and return mx.arrays and are lazy."""

from __future__ import annotations

from functools import cache

import mlx.core as mx

from ember_ml.kernels import LANES, THREADS, row_block, source_text
from ember_ml.kernels.moe import BACKWARD_ROWS, BACKWARD_WEIGHTS, FORWARD
from ember_ml.kernels.spec import Entry


def available() -> bool:
    """Whether kernels can run: there is Metal, and MLX has not been told to compute on the CPU."""
    return mx.metal.is_available() and mx.default_device() == mx.gpu


def body(entry: Entry) -> str:
    """The source that MLX wraps into a kernel: one call of the entry's function in the .metal file."""
    function = entry.name.removeprefix(f"{entry.stem}_")
    sizes = [f"uint({name}_shape[{axis}])" for name, axis in entry.sizes]
    arguments = [*entry.input_names, *entry.outputs, *sizes, "thread_position_in_grid"]
    return f"{entry.stem}::{function}({', '.join(arguments)});"


@cache
def _kernel(entry: Entry):
    """Made once: MLX builds its text anew from header and source at every call, and compiles by the kernel's name."""
    return mx.fast.metal_kernel(
        name=entry.name, input_names=entry.input_names, output_names=entry.outputs, source=body(entry),
        header=source_text("metal", entry.stem))


def _launch(entry: Entry, inputs, threads, group, shape, dtype, zeroed=False):
    """One output of `shape` and `dtype`, by `threads` (x, y) in groups of `group` (x, y).

    Raises UnsupportedDtype if the kernel does not take the inputs' dtypes.
    """
    entry.own_dtype([str(x.dtype).removeprefix("mlx.core.") for x in inputs])
    y, = _kernel(entry)(inputs=inputs, grid=(*threads, 1), threadgroup=(*group, 1), output_shapes=[shape],
                        output_dtypes=[dtype], init_value=0 if zeroed else None)
    return y


def moe_combine(expert_out: mx.array, inverse: mx.array, weights: mx.array) -> mx.array:
    """y[t] = sum_k weights[t, k] expert_out[inverse[t, k]].

    Args:
        expert_out: (N, D), float32, float16 or bfloat16. inverse: (T, K), int32. weights: (T, K), float32.

    Returns: (T, D) in expert_out's dtype, summed in float32. Indices out of range are moved to the nearest row.

    Raises UnsupportedDtype for other dtypes.
    """
    shape = (inverse.shape[0], expert_out.shape[1])
    if expert_out.size == 0 or inverse.size == 0:          # Metal launches no empty grids
        return mx.zeros(shape, expert_out.dtype)
    width = shape[1]
    return _launch(FORWARD, [expert_out, inverse, weights], (width, shape[0]), row_block(width), shape,
                   expert_out.dtype)


def moe_combine_backward(g: mx.array, expert_out: mx.array, inverse: mx.array,
                         weights: mx.array) -> tuple[mx.array, mx.array]:
    """Gradients of `moe_combine` for its output's gradient g (T, D), which has expert_out's dtype.

    Returns: d_expert_out (N, D) in expert_out's dtype, zero in rows that no pair owns; d_weights (T, K), float32.
    An index out of range owns no row: its part of d_expert_out is dropped.

    Raises UnsupportedDtype for other dtypes.
    """
    if expert_out.size == 0 or inverse.size == 0:
        return mx.zeros_like(expert_out), mx.zeros(weights.shape, mx.float32)
    (_, width), pairs = expert_out.shape, inverse.size
    d_expert_out = _launch(BACKWARD_ROWS, [g, expert_out, inverse, weights], (width, pairs), row_block(width),
                           expert_out.shape, expert_out.dtype, zeroed=True)
    d_weights = _launch(BACKWARD_WEIGHTS, [g, expert_out, inverse], (LANES, pairs), (LANES, THREADS // LANES),
                        weights.shape, mx.float32)
    return d_expert_out, d_weights


#: launcher by the name of its KernelSpec
KERNELS = {"moe_combine": moe_combine, "moe_combine_backward": moe_combine_backward}
