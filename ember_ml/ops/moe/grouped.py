"""Matrix products by group: rows that are sorted by expert, times their expert's own matrix."""

from __future__ import annotations

from ember_ml.errors import ShapeError
from ember_ml.ops.declare import op
from ember_ml.ops.dispatch import expect_tensors
from ember_ml.ops.moe.plan import Plan, expect_plan
from ember_ml.ops.shape import swap_axes
from ember_ml.tensor import EmberTensor
from ember_ml.tensor.common import dtypes as dt


@op(public="grouped_linear", vjp=(lambda g, _y, _x, w, offsets, *, block, complete:
         grouped_rows(g, swap_axes(w), offsets, block=block, complete=complete),
         lambda g, _y, x, _w, offsets, *, block, complete: grouped_outer_rows(g, x, offsets, block=block, complete=complete),
         None), owns_gradient=True)
def grouped_rows(x, w, offsets, *, block, complete):
    """Native form of `grouped_linear`; rows past the last offset give zero."""
    ...


@op(public="grouped_outer", vjp=(lambda g, _y, _a, b, offsets, *, block, complete: grouped_rows(b, g, offsets, block=block, complete=complete),
         lambda g, _y, a, _b, offsets, *, block, complete:
         grouped_rows(a, swap_axes(g), offsets, block=block, complete=complete), None), owns_gradient=True)
def grouped_outer_rows(a, b, offsets, *, block, complete):
    """Native form of `grouped_outer`; rows past the last offset have no part in it."""
    ...


def grouped_linear(x: EmberTensor, w: EmberTensor, plan: Plan) -> EmberTensor:
    """y[r] = w[e] x[r] for the rows r of each expert e; zero for rows that are nobody's.

    Args: x: (R, d_in), rows of the plan. w: (E, d_out, d_in). Returns: (R, d_out), summed in float32 at least.

    How: per expert on a CPU, torch's grouped_mm on NVIDIA GPUs, one gathered product of whole blocks on MLX. The gradient
    with respect to w is `grouped_outer`: w is never sliced, which would cost a whole w of zeros per expert.
    """
    expect_tensors("grouped_linear", x=x, w=w)
    expect_plan("grouped_linear", plan)
    if x.ndim != 2 or w.ndim != 3 or x.shape != (plan.order.shape[0], w.shape[2]) or w.shape[0] != plan.num_experts:
        raise ShapeError(f"grouped_linear: expected x (R, d_in) and w (E, d_out, d_in) for R = {plan.order.shape[0]} rows "
                         f"and E = {plan.num_experts} experts; got {x.shape} and {w.shape}")
    common = dt.promote(x.dtype, w.dtype)
    return grouped_rows(x.astype(common), w.astype(common), plan.offsets, block=plan.block, complete=plan.complete)


def grouped_outer(a: EmberTensor, b: EmberTensor, plan: Plan) -> EmberTensor:
    """c[e] = sum over the rows r of expert e of a[r] b[r]^T; zero for experts without rows.

    Args: a: (R, m). b: (R, n). Returns: (E, m, n), summed in float32 at least.
    """
    expect_tensors("grouped_outer", a=a, b=b)
    expect_plan("grouped_outer", plan)
    rows = plan.order.shape[0]
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != rows or b.shape[0] != rows:
        raise ShapeError(f"grouped_outer: expected a (R, m) and b (R, n) for R = {rows}; got {a.shape} and {b.shape}")
    common = dt.promote(a.dtype, b.dtype)
    return grouped_outer_rows(a.astype(common), b.astype(common), plan.offsets, block=plan.block, complete=plan.complete)
