"""Mixture of experts: putting the experts' outputs back together."""

from __future__ import annotations

from ember_ml.errors import ShapeError, UnsupportedDtype
from ember_ml.kernels import MOE_COMBINE, MOE_COMBINE_BACKWARD
from ember_ml.ops.creation import ones_like, zeros
from ember_ml.ops.declare import op
from ember_ml.ops.dispatch import CONSTANT, expect_tensors
from ember_ml.ops.elementwise import clip, logical_and, multiply, where
from ember_ml.ops.index import check_indices, checks_values, scatter_add, take_axis
from ember_ml.ops.reduce import argmax
from ember_ml.ops.reduce import sum as total
from ember_ml.ops.shape import expand_dims, reshape
from ember_ml.tensor import EmberTensor
from ember_ml.tensor.common import dtypes as dt


@op(kernel=MOE_COMBINE_BACKWARD)
def moe_combine_grad(g, expert_out, inverse, weights):
    """(d_expert_out (N, D), d_weights (T, K)) of `moe_combine` for its output's gradient g (T, D).

    A row that no pair owns gets zero. An index out of range owns no row, its part is dropped. Equal rows, which the op rules out, would
    not add up in the kernels.
    """
    kind, count = dt.promote(expert_out.dtype, dt.float32), expert_out.shape[0]
    at = clip(inverse, 0, count - 1)
    rows = take_axis(expert_out, at, axis=0).astype(kind)
    wide = expand_dims(g.astype(kind), 1)
    owns = expand_dims(logical_and(inverse >= 0, inverse < count), -1)
    d_rows = reshape(where(owns, wide * expand_dims(weights, -1), 0.0), (-1, g.shape[-1])).astype(expert_out.dtype)
    d_expert_out = scatter_add(expert_out.zeros_like(), reshape(at, (-1,)), d_rows, axis=0)
    return d_expert_out, total(rows * wide, axis=-1)


def _grad(g, _y, expert_out, inverse, weights):
    d_expert_out, d_weights = moe_combine_grad(g, expert_out, inverse, weights)
    return d_expert_out, None, d_weights


@op(public="moe_combine", vjp=_grad, owns_gradient=True, kernel=MOE_COMBINE)
def moe_combine_rows(expert_out, inverse, weights):
    """Native form of `moe_combine`, for checked shapes and int32 indices. Those out of range read the nearest row."""
    rows = take_axis(expert_out, clip(inverse, 0, expert_out.shape[0] - 1), axis=0).astype(dt.promote(expert_out.dtype, dt.float32))
    return total(multiply(rows, expand_dims(weights, -1)), axis=1).astype(expert_out.dtype)


@op(vjp=CONSTANT)
def row_indices(inverse, *, rows: int):
    """Integers with negative ones counted from the end; those out of range become -1 or `rows`, which are so still."""
    return clip(where(inverse < 0, inverse + rows, inverse), -1, rows)


def _rows_of_pairs(inverse: EmberTensor, rows: int) -> EmberTensor:
    """inverse in int32, as the kernels take it. Raises IndexError as `moe_combine` says."""
    inverse = row_indices(check_indices("moe_combine", inverse, rows), rows=rows).astype(dt.int32)
    if checks_values(inverse) and inverse.size:
        flat = reshape(inverse, (-1,))
        owners = scatter_add(zeros((rows,), flat.dtype, like=flat), flat, ones_like(flat), axis=0)
        most = argmax(owners).item()
        if owners[most].item() > 1:
            raise IndexError(f"moe_combine: expected every row at most once in inverse, got row {most} {owners[most].item()} times; for rows "
                             "that pairs share, sum take(expert_out, inverse) times the weights")
    return inverse


def moe_combine(expert_out: EmberTensor, inverse: EmberTensor, weights: EmberTensor) -> EmberTensor:
    """y[t] = sum_k weights[t, k] expert_out[inverse[t, k]]: each token's weighted sum of its experts' outputs.

    Args:
        expert_out: (N, D), one row per (token, slot) pair, in whatever order the experts worked; floating point.
        inverse: (T, K), integers in [0, N): the row of each pair, every row at most once. Where indices are not checked, one out of
            range reads the nearest row and has no part in its gradient, and a row given twice gets the gradient of one of its
            pairs, or their sum.
        weights: (T, K), float32: the router's weights (float64 where expert_out is).

    Returns: (T, D) in expert_out's dtype, summed in float32 (float64), slot by slot.

    Raises ShapeError for shapes that do not fit; UnsupportedDtype for integers; IndexError for rows out of range or
    given twice, where indices are checked.
    """
    expect_tensors("moe_combine", expert_out=expert_out, inverse=inverse, weights=weights)
    if expert_out.dtype.kind != "float":
        raise UnsupportedDtype(f"moe_combine: expected expert_out of a floating-point dtype, got {expert_out.dtype}; cast it with "
                               ".astype('float32')")
    if expert_out.ndim != 2 or inverse.ndim != 2 or weights.shape != inverse.shape:
        raise ShapeError("moe_combine: expected expert_out (N, D), inverse (T, K) and weights (T, K); got "
                         f"{expert_out.shape}, {inverse.shape} and {weights.shape}")
    return moe_combine_rows(expert_out, _rows_of_pairs(inverse, expert_out.shape[0]), weights.astype(dt.promote(expert_out.dtype, dt.float32)))
