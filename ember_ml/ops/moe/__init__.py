"""Mixture of experts: tokens to experts and back.

    ids = softmax_choice(z, bias, k=k)         the experts of each token
    plan = moe_plan(ids, num_experts)          which row belongs to which (token, slot) pair, sorted by expert
    rows = moe_gather(x, plan)                 the tokens, a copy per pair, expert by expert
    rows = grouped_linear(rows, w, plan)       each expert's rows times its own matrix
    y = moe_combine(rows, plan.inverse, weights)

`moe_mlp` is all of it for perceptrons, without the intermediate copies.
"""

from ember_ml.ops.moe.combine import moe_combine
from ember_ml.ops.moe.grouped import grouped_linear, grouped_outer
from ember_ml.ops.moe.mlp import moe_mlp
from ember_ml.ops.moe.plan import Plan, moe_gather, moe_plan
from ember_ml.ops.moe.route import softmax_choice, softmax_weights

__all__ = ["Plan", "grouped_linear", "grouped_outer", "moe_combine", "moe_gather", "moe_mlp", "moe_plan",
           "softmax_choice", "softmax_weights"]
