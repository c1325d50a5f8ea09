"""The gated recurrent unit."""

from __future__ import annotations

from ember_ml.nn.layers.sequence_mixing.recurrent.base import Recurrent, RecurrentConfig
from ember_ml.nn.packing import resets
from ember_ml.ops import gru
from ember_ml.registry import config, layers
from ember_ml.tensor import EmberTensor


@config
class GRUConfig(RecurrentConfig):
    """As RecurrentConfig."""


@layers.register("gru")
class GRU(Recurrent):
    """r, z, n = W_ih x_t + b, r and z with W_hh h added;  h = (1 - sig(z)) tanh(n + sig(r) (W_hn h + b_inner)) + sig(z) h.

    Parameters: weight_ih, weight_hh and bias with the gates in this order, as torch's; bias_inner (d_hidden,). State: h
    (B, d_hidden).

    Source: Cho et al. 2014, Learning Phrase Representations using RNN Encoder-Decoder, with the reset gate after the product.
    """

    Config = GRUConfig
    gates, biases = 3, {"bias": 3, "bias_inner": 1}

    def run(self, x: EmberTensor, *state: EmberTensor) -> tuple:
        return gru(x, self.weight_ih, self.weight_hh, self.bias, self.bias_inner, *state, reset=resets())
