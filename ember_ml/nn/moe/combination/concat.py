"""Concatenation: experts keep channels of their own until a linear layer joins them."""

from __future__ import annotations

from ember_ml.nn.layers.channel_mixing.dense import Dense, DenseConfig
from ember_ml.nn.module import Module
from ember_ml.nn.moe.combination.base import combiners
from ember_ml.nn.moe.experts.base import Experts
from ember_ml.nn.moe.routing import Routing
from ember_ml.ops import expand_dims, reshape, swap_axes
from ember_ml.registry import Size, config
from ember_ml.tensor import EmberTensor


@config
class ConcatCombinerConfig:
    """d_input: channels of the layer. d_expert: channels that an expert gives. slots: K."""

    d_input: Size
    d_expert: Size
    slots: Size


@combiners.register("concat")
class ConcatCombiner(Module):
    """y_t = W_o [w_t1 f_1(x_t); ...; w_tK f_K(x_t)] + b_o, slots by falling score, for all experts by their number.

    Parameters: out (d_input, K d_expert) as Dense.
    """

    Config = ConcatCombinerConfig

    def __init__(self, config: ConcatCombinerConfig, key: EmberTensor | None = None):
        self.config = c = config
        self.out = Dense(DenseConfig(c.slots * c.d_expert, c.d_input), key=key)

    def forward(self, experts: Experts, x: EmberTensor, routing: Routing) -> EmberTensor:
        """Chosen experts on x (T, d_input)."""
        return self._join(experts.slots(x, routing), routing.weights)

    def dense(self, outputs: EmberTensor, weights: EmberTensor) -> EmberTensor:
        """All experts' outputs (E, T, d_expert) with weights (T, E)."""
        return self._join(swap_axes(outputs, 0, 1), weights)

    def _join(self, rows, weights):
        rows = rows * expand_dims(weights, -1).astype(rows.dtype)
        return self.out(reshape(rows, (rows.shape[0], rows.shape[1] * rows.shape[2])))
