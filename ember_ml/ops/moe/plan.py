"""Who works on what: the (token, slot) pairs of a routing, sorted by expert."""

from __future__ import annotations

from typing import NamedTuple

from ember_ml.autodiff import stop_gradient
from ember_ml.errors import ShapeError, UnsupportedOp
from ember_ml.kernels import MOE_GATHER, MOE_PLAN
from ember_ml.ops.creation import arange, full, ones_like, zeros
from ember_ml.ops.declare import op
from ember_ml.ops.dispatch import CONSTANT, expect_tensors
from ember_ml.ops.elementwise import clip, minimum, where
from ember_ml.ops.index import checks_values, scatter_add, take_axis
from ember_ml.ops.moe.combine import moe_combine_rows
from ember_ml.ops.recurrence.cumulative import cumsum
from ember_ml.ops.reduce import max as largest
from ember_ml.ops.reduce import min as smallest
from ember_ml.ops.shape import concat, cut, expand_dims, reshape
from ember_ml.tensor import EmberTensor
from ember_ml.tensor.common import dtypes as dt


class Plan(NamedTuple):
    """Rows, one for each (token, slot) pair, in the order of experts; within an expert in the order of pairs (stable).

    order: (R,), int32: the pair, t K + k, that each row belongs to; T K for a row that fills a block up.
    inverse: (T, K), int32: the row of each pair.
    offsets: (E + 1,), int32: expert e has the rows offsets[e] to offsets[e + 1]. Rows past the last are nobody's.
    block: every expert's rows begin at a multiple of it (1, but where an engine's matrix product wants whole blocks).
    complete: every pair has an expert, so that with block 1 no row is nobody's.

    `moe_plan` makes it, and what takes one relies on its values. All shapes follow from those of the ids, so a plan lives inside a compiled step; nothing waits for a device.
    """

    order: EmberTensor
    inverse: EmberTensor
    offsets: EmberTensor
    block: int = 1
    complete: bool = True

    @property
    def num_experts(self) -> int:
        return self.offsets.shape[0] - 1

    @property
    def load(self) -> EmberTensor:
        """(E,), int32: rows of each expert, those that fill blocks up included."""
        return cut(self.offsets, 1, self.num_experts + 1) - cut(self.offsets, 0, self.num_experts)


def _places(keys, where_to, values):
    """zeros like keys with values at where_to, every place once."""
    return scatter_add(keys.zeros_like(), where_to, values, axis=0)


@op(public="moe_plan", vjp=CONSTANT, kernel=MOE_PLAN)
def moe_plan_rows(ids, *, experts: int, block: int, rows: int, last: int):
    """(order, inverse, offsets) of `moe_plan`. Ids are moved into [0, last]; `experts` is nobody."""
    from ember_ml.ops.sort import argsort
    flat = clip(reshape(ids, (-1,)), min=0, max=last)
    pairs, by_expert = flat.shape[0], argsort(flat)
    counts = scatter_add(zeros((experts + 1,), flat.dtype, like=flat), flat, ones_like(flat), axis=0)
    counts = cut(counts, 0, experts)
    none = zeros((1,), flat.dtype, like=flat)
    ends = (counts + (block - 1)) // block * block if block > 1 else counts
    offsets = concat([none, cumsum(ends, axis=0)])
    row = arange(pairs, dtype=flat.dtype, like=flat)
    if block > 1:
        starts = concat([none, cumsum(counts, axis=0)])
        row = row + take_axis(offsets - starts, take_axis(flat, by_expert, axis=0), axis=0)
    inverse = _places(flat, by_expert, row)
    if block == 1:
        return by_expert, reshape(inverse, ids.shape), offsets
    order = scatter_add(full((rows,), pairs, flat.dtype, like=flat), row, by_expert - pairs, axis=0)
    return order, reshape(inverse, ids.shape), offsets


def moe_plan(ids: EmberTensor, num_experts: int, complete: bool = True, block: int | None = None) -> Plan:
    """The plan of a routing.

    Args:
        ids: (T, K), integers in [0, num_experts): the experts of each token, each at most once. With complete=False
            the value num_experts is allowed, and stands for no expert.
        num_experts: E.
        block: see Plan; 1, or None for what the engine's matrix product wants.

    Raises ShapeError for other shapes, no experts, and other blocks; IndexError for ids out of range, where indices are checked (elsewhere they clamp).
    """
    expect_tensors("moe_plan", ids=ids)
    if num_experts < 1:
        raise ShapeError(f"moe_plan: expected num_experts of at least 1, got {num_experts}")
    if ids.ndim != 2:
        raise ShapeError(f"moe_plan: expected ids (tokens, slots), got shape {ids.shape}")
    if not ids.dtype.is_integer:
        raise UnsupportedOp(f"moe_plan: expected integer ids, got dtype {ids.dtype}; cast with .astype('int32')")
    last = num_experts - 1 if complete else num_experts
    if checks_values(ids) and ids.size and (smallest(ids).item() < 0 or largest(ids).item() > last):
        bad = smallest(ids).item() if smallest(ids).item() < 0 else largest(ids).item()
        raise IndexError(f"moe_plan: expected ids in [0, {last}], got {bad}")
    if ids.dtype is not dt.int32:
        ids = clip(ids, min=0, max=last)                   # before they lose bits
    own = ids.backend.grouped_block(ids.size, num_experts)
    if block not in (None, 1, own):
        raise ShapeError(f"moe_plan: expected block 1{f' or {own}' if own > 1 else ''} on {ids.backend.name}, or None, got {block}")
    block = block or own
    rows = ids.size if block == 1 else (-(-ids.size // block) + num_experts) * block
    order, inverse, offsets = moe_plan_rows(stop_gradient(ids).astype(dt.int32), experts=num_experts, block=block, rows=rows,
                                           last=last)
    return Plan(order, inverse, offsets, block, complete)


@op(public="moe_gather", vjp=(lambda g, _y, x, _order, inverse: moe_combine_rows(g, inverse, _weight_one(inverse, g)), None, None),
    owns_gradient=True, kernel=MOE_GATHER)
def moe_gather_rows(x, order, inverse):
    """Native form of `moe_gather`."""
    tokens, pairs = x.shape[0], inverse.shape[0] * inverse.shape[1]
    if order.shape[0] == pairs:
        return take_axis(x, order // inverse.shape[1], axis=0)
    rows = take_axis(x, minimum(order // max(inverse.shape[1], 1), max(tokens - 1, 0)), axis=0)
    return where(expand_dims(order < pairs, 1), rows, 0.0)


def _weight_one(inverse, like):
    wide = dt.promote(like.dtype, dt.float32)
    return full(inverse.shape, 1, wide, like=like)


def moe_gather(x: EmberTensor, plan: Plan) -> EmberTensor:
    """The rows of a plan: row r is the token of pair order[r], zero where the row has no pair.

    Args: x: (T, D), floating point. Returns: (R, D). Gradient: each token's rows are added, in the order of its slots.
    """
    expect_tensors("moe_gather", x=x)
    expect_plan("moe_gather", plan)
    if x.ndim != 2 or x.shape[0] != plan.inverse.shape[0]:
        raise ShapeError(f"moe_gather: expected x (tokens, channels) for {plan.inverse.shape[0]} tokens, got {x.shape}")
    if x.shape[0] == 0:
        return zeros((plan.order.shape[0], x.shape[1]), x.dtype, like=x)
    return moe_gather_rows(x, plan.order, plan.inverse)


def expect_plan(name: str, plan):
    """Raises TypeError for what is no plan."""
    if not isinstance(plan, Plan):
        raise TypeError(f"{name}: expected plan to be a Plan, got {type(plan).__name__}; make one with moe_plan(ids, num_experts)")


def pair_values(values: EmberTensor, plan: Plan) -> EmberTensor:
    """(R, 1): a number per row from one per pair, values (T, K); zero for rows without a pair."""
    return moe_gather(reshape(values, (-1, 1)), Plan(plan.order, reshape(plan.inverse, (-1, 1)), plan.offsets))
