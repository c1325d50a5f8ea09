"""Capacity: an expert takes a limited number of rows, and some slots go without."""

from __future__ import annotations

import math

from ember_ml.autodiff import stop_gradient
from ember_ml.ops import argsort, moe_plan, reshape, swap_axes, take, where
from ember_ml.tensor import EmberTensor


def keep_within_capacity(ids: EmberTensor, weights: EmberTensor, num_experts: int, factor: float,
                         drop: str) -> tuple[EmberTensor, EmberTensor]:
    """(ids, weights) after each expert has kept at most C = ceil(factor * T K / E) rows.

    Args:
        ids, weights: (T, K), of a routing. factor: 1 leaves room for exactly the mean load.
        drop: "position" serves all first slots in the order of tokens, then all second slots, and so on (Lepikhin et al. 2020,
            GShard, algorithm 1); "score" serves by falling weight, ties to the earlier slot (Riquelme et al. 2021, V-MoE).

    A slot beyond an expert's capacity gets the id num_experts and weight 0.
    """
    tokens, slots = ids.shape
    capacity = math.ceil(factor * tokens * slots / num_experts)
    if drop == "position":
        queue = reshape(swap_axes(ids), (-1, 1))
        rank = _rank(queue, num_experts)
        rank = swap_axes(reshape(rank, (slots, tokens)))
    else:
        by_weight = argsort(stop_gradient(reshape(weights, (-1,))), descending=True)
        rank = _rank(reshape(take(reshape(ids, (-1,)), by_weight), (-1, 1)), num_experts)
        rank = reshape(take(rank, argsort(by_weight)), ids.shape)
    fits = rank < capacity
    return where(fits, ids, num_experts), where(fits, weights, 0.0)


def _rank(queue: EmberTensor, num_experts: int) -> EmberTensor:
    """(N,): how many earlier entries of the queue (N, 1) want the same expert."""
    plan = moe_plan(queue, num_experts, complete=False, block=1)
    return reshape(plan.inverse - take(plan.offsets, queue), (-1,))
