"""Two-layer perceptrons as experts."""

from __future__ import annotations

from ember_ml.nn import initializers
from ember_ml.nn.layers.activations import ACTIVATIONS, ActivationName
from ember_ml.nn.module import Module
from ember_ml.ops import expand_dims, matmul, random, swap_axes
from ember_ml.registry import Size, config
from ember_ml.tensor import EmberTensor


@config
class MLPExpertsConfig:
    """d_input: channels. num_experts: E. d_inner: hidden channels of each. activation: between the layers."""

    d_input: Size
    num_experts: Size
    d_inner: Size
    activation: ActivationName = "gelu_tanh"


class MLPExperts(Module):
    """f_e(x) = w2_e activation(w1_e x + b1_e) + b2_e for every expert e.

    Args:
        config: see MLPExpertsConfig. key: random key of the initial weights, uniform in +-1/sqrt(fan in) as Dense.

    Parameters: w1 (E, d_inner, d_input), b1 (E, d_inner), w2 (E, d_input, d_inner), b2 (E, d_input).
    """

    Config = MLPExpertsConfig

    def __init__(self, config: MLPExpertsConfig, key: EmberTensor | None = None):
        self.config = c = config
        keys = random.split(key if key is not None else random.next_key(), 4)
        self.w1 = initializers.fan_in_uniform(keys[0], (c.num_experts, c.d_inner, c.d_input), c.d_input)
        self.b1 = initializers.fan_in_uniform(keys[1], (c.num_experts, c.d_inner), c.d_input)
        self.w2 = initializers.fan_in_uniform(keys[2], (c.num_experts, c.d_input, c.d_inner), c.d_inner)
        self.b2 = initializers.fan_in_uniform(keys[3], (c.num_experts, c.d_input), c.d_inner)

    def forward(self, x: EmberTensor) -> EmberTensor:
        """Every expert on every token: (T, d_input) to (E, T, d_input)."""
        h = matmul(x, swap_axes(self.w1)) + expand_dims(self.b1, 1)
        return matmul(ACTIVATIONS[self.config.activation](h), swap_axes(self.w2)) + expand_dims(self.b2, 1)
