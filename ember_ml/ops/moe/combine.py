"""Mixture of experts: putting the experts' outputs back together."""

from __future__ import annotations

from ember_ml.errors import ShapeError, UnsupportedDtype
from ember_ml.kernels import MOE_COMBINE, MOE_COMBINE_BACKWARD
from ember_ml.ops.declare import op
from ember_ml.ops.dispatch import expect_tensors
from ember_ml.ops.elementwise import multiply
from ember_ml.ops.index import checked_indices, scatter_add, take_axis
from ember_ml.ops.reduce import sum as total
from ember_ml.ops.shape import expand_dims, reshape
from ember_ml.tensor import EmberTensor
from ember_ml.tensor.common import dtypes as dt


@op(kernel=MOE_COMBINE_BACKWARD)
def moe_combine_grad(g, expert_out, inverse, weights):
    """(d_expert_out (N, D), d_weights (T, K)) of `moe_combine` for its output's gradient g (T, D).

    A row that no pair owns gets zero; equal rows, which the op rules out, would not add up in the kernels.
    """
    kind = dt.promote(expert_out.dtype, dt.float32)
    rows = take_axis(expert_out, inverse, axis=0).astype(kind)
    wide = expand_dims(g.astype(kind), 1)
    d_rows = reshape(wide * expand_dims(weights, -1), (-1, g.shape[-1])).astype(expert_out.dtype)
    d_expert_out = scatter_add(expert_out.zeros_like(), reshape(inverse, (-1,)), d_rows, axis=0)
    return d_expert_out, total(rows * wide, axis=-1)


def _grad(g, _y, expert_out, inverse, weights):
    d_expert_out, d_weights = moe_combine_grad(g, expert_out, inverse, weights)
    return d_expert_out, None, d_weights


@op(vjp=_grad, owns_gradient=True, kernel=MOE_COMBINE)
def moe_combine_rows(expert_out, inverse, weights):
    """Native form of `moe_combine`, for checked shapes and indices."""
    rows = take_axis(expert_out, inverse, axis=0).astype(dt.promote(expert_out.dtype, dt.float32))
    return total(multiply(rows, expand_dims(weights, -1)), axis=1).astype(expert_out.dtype)


def moe_combine(expert_out: EmberTensor, inverse: EmberTensor, weights: EmberTensor) -> EmberTensor:
    """y[t] = sum_k weights[t, k] expert_out[inverse[t, k]]: each token's weighted sum of its experts' outputs.

    Args:
        expert_out: (N, D), one row per (token, slot) pair, in whatever order the experts worked; floating point.
        inverse: (T, K), integers in [0, N): the row of each pair, every row at most once.
        weights: (T, K), float32: the router's weights (float64 where expert_out is).

    Returns: (T, D) in expert_out's dtype, summed in float32 (float64), slot by slot.

    Raises ShapeError for shapes that do not fit; UnsupportedDtype for integers; IndexError for rows out of range, where indices are checked.
    """
    expect_tensors("moe_combine", expert_out=expert_out, inverse=inverse, weights=weights)
    if expert_out.dtype.kind != "float":
        raise UnsupportedDtype(f"moe_combine: expected expert_out of a floating-point dtype, got {expert_out.dtype}; cast it with "
                               ".astype('float32')")
    if expert_out.ndim != 2 or inverse.ndim != 2 or weights.shape != inverse.shape:
        raise ShapeError("moe_combine: expected expert_out (N, D), inverse (T, K) and weights (T, K); got "
                         f"{expert_out.shape}, {inverse.shape} and {weights.shape}")
    inverse = checked_indices("moe_combine", inverse, expert_out.shape[0]).astype(dt.int32)
    return moe_combine_rows(expert_out, inverse, weights.astype(dt.promote(expert_out.dtype, dt.float32)))
