"""The weighted sum, with an output layer if asked for."""

from __future__ import annotations

from ember_ml.nn.layers.channel_mixing.dense import Dense, DenseConfig
from ember_ml.nn.module import Module
from ember_ml.nn.moe.combination.base import combiners
from ember_ml.nn.moe.experts.base import Experts
from ember_ml.nn.moe.routing import Routing
from ember_ml.ops import expand_dims, swap_axes
from ember_ml.registry import Size, config
from ember_ml.tensor import EmberTensor


@config
class WeightedSumCombinerConfig:
    """d_input: channels of the layer. d_expert: channels that an expert gives. slots: K. output_layer: a linear layer after the
    sum, trained jointly with router and experts; needed where d_expert is not d_input."""

    d_input: Size
    d_expert: Size
    slots: Size
    output_layer: bool = False


@combiners.register("weighted_sum")
class WeightedSumCombiner(Module):
    """y_t = sum_k w_tk f_k(x_t), then W_o y_t + b_o with the output layer.

    Parameters: out (d_input, d_expert) as Dense, with output_layer.
    """

    Config = WeightedSumCombinerConfig

    def __init__(self, config: WeightedSumCombinerConfig, key: EmberTensor | None = None):
        self.config = c = config
        self.out = Dense(DenseConfig(c.d_expert, c.d_input), key=key) if c.output_layer else None

    def forward(self, experts: Experts, x: EmberTensor, routing: Routing) -> EmberTensor:
        """Chosen experts on x (T, d_input)."""
        return self._end(experts.mixed(x, routing))

    def dense(self, outputs: EmberTensor, weights: EmberTensor) -> EmberTensor:
        """All experts' outputs (E, T, d_expert) with weights (T, E)."""
        return self._end((outputs * expand_dims(swap_axes(weights), -1).astype(outputs.dtype)).sum(axis=0))

    def _end(self, y):
        return y if self.out is None else self.out(y)
