"""The plain recurrent layer."""

from __future__ import annotations

from typing import Literal

from ember_ml.nn.layers.sequence_mixing.recurrent.base import Recurrent, RecurrentConfig
from ember_ml.nn.packing import resets
from ember_ml.ops import rnn
from ember_ml.registry import config, layers
from ember_ml.tensor import EmberTensor


@config
class RNNConfig(RecurrentConfig):
    """activation: tanh or relu; the rest as RecurrentConfig."""

    activation: Literal["tanh", "relu"] = "tanh"


@layers.register("rnn")
class RNN(Recurrent):
    """h_t = tanh(W_ih x_t + b + W_hh h_{t-1}), or relu; y_t = h_t. Source: Elman 1990, Finding Structure in Time.

    Parameters: weight_ih, weight_hh, bias (d_hidden,). State: h (B, d_hidden).
    """

    Config = RNNConfig
    gates, biases = 1, {"bias": 1}

    def run(self, x: EmberTensor, *state: EmberTensor) -> tuple:
        return rnn(x, self.weight_ih, self.weight_hh, self.bias, *state, relu=self.config.activation == "relu",
                   reset=resets())
