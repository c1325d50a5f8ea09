"""Perceptrons as experts, gated or plain, stacked: one tensor per parameter holds that of all experts."""

from __future__ import annotations

from ember_ml.nn import initializers
from ember_ml.nn.layers.activations import ACTIVATIONS, ActivationName
from ember_ml.nn.moe.experts.base import Experts, experts
from ember_ml.nn.moe.routing import Routing
from ember_ml.ops import (
    arange, expand_dims, grouped_linear, matmul, minimum, moe_gather, moe_mlp, moe_plan, random, split, swap_axes, take,
)
from ember_ml.registry import Size, config
from ember_ml.tensor import EmberTensor


@config
class MLPExpertsConfig:
    """d_input: channels. num_experts: E. d_inner: hidden channels of each, None for 4 d_input. d_output: None for d_input.
    activation: between the layers. glu: gate the hidden channels. bias: of both layers, None for not with glu."""

    d_input: Size
    num_experts: Size
    d_inner: Size | None = None
    activation: ActivationName = "gelu_tanh"
    glu: bool = False
    bias: bool | None = None
    d_output: Size | None = None


@experts.register("mlp")
class MLPExperts(Experts):
    """f_e(x) = w2_e a(w1_e x + b1_e) + b2_e; a is the activation, or with glu a(h) = activation(h_gate) h_up, h_gate from the first
    d_inner rows of w1, h_up from the others.

    Args:
        config: see MLPExpertsConfig. key: random key of the initial weights, uniform in +-1/sqrt(fan in) as Dense.

    Parameters: w1 (E, d_inner, d_input), with glu (E, 2 d_inner, d_input); w2 (E, d_output, d_inner); with bias b1, b2: (E, rows).
    """

    Config = MLPExpertsConfig

    def __init__(self, config: MLPExpertsConfig, key: EmberTensor | None = None):
        self.config = c = config
        inner, self.d_output = c.d_inner or 4 * c.d_input, c.d_output or c.d_input
        rows, bias = inner * (2 if c.glu else 1), not c.glu if c.bias is None else c.bias
        keys = random.split(key if key is not None else random.next_key(), 4)
        self.w1 = initializers.fan_in_uniform(keys[0], (c.num_experts, rows, c.d_input), c.d_input)
        self.b1 = initializers.fan_in_uniform(keys[1], (c.num_experts, rows), c.d_input) if bias else None
        self.w2 = initializers.fan_in_uniform(keys[2], (c.num_experts, self.d_output, inner), inner)
        self.b2 = initializers.fan_in_uniform(keys[3], (c.num_experts, self.d_output), inner) if bias else None

    def forward(self, x: EmberTensor) -> EmberTensor:
        """Every expert on every token: (T, d_input) to (E, T, d_output)."""
        h = matmul(x, swap_axes(self.w1))
        h = self._activate(h if self.b1 is None else h + expand_dims(self.b1, 1))
        y = matmul(h, swap_axes(self.w2))
        return y if self.b2 is None else y + expand_dims(self.b2, 1)

    def slots(self, x: EmberTensor, routing: Routing) -> EmberTensor:
        plan = moe_plan(routing.ids, self.config.num_experts, routing.complete)
        mine = _rows_of(plan)
        h = grouped_linear(moe_gather(x, plan), self.w1, plan)
        h = self._activate(h if self.b1 is None else h + take(self.b1, mine))
        y = grouped_linear(h, self.w2, plan)
        return take(y if self.b2 is None else y + take(self.b2, mine), plan.inverse)

    def mixed(self, x: EmberTensor, routing: Routing) -> EmberTensor:
        plan = routing.ids if routing.complete else moe_plan(routing.ids, self.config.num_experts, False)
        return moe_mlp(x, routing.weights, plan, self.w1, self.w2, self.b1, self.b2, self.config.activation, self.config.glu)

    def _activate(self, h: EmberTensor) -> EmberTensor:
        act = ACTIVATIONS[self.config.activation]
        if not self.config.glu:
            return act(h)
        gate, up = split(h, 2, axis=-1)
        return act(gate) * up


def _rows_of(plan) -> EmberTensor:
    """(R,): the expert of each row of a plan."""
    rows = arange(plan.order.shape[0], like=plan.offsets)
    past = (expand_dims(rows, 1) >= expand_dims(plan.offsets[1:], 0)).astype("int32")
    return minimum(past.sum(axis=1), plan.num_experts - 1)
