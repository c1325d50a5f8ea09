"""Long short-term memory."""

from __future__ import annotations

from ember_ml.nn.layers.sequence_mixing.recurrent.base import Recurrent, RecurrentConfig
from ember_ml.nn.packing import resets
from ember_ml.ops import lstm
from ember_ml.registry import config, layers
from ember_ml.tensor import EmberTensor


@config
class LSTMConfig(RecurrentConfig):
    """As RecurrentConfig."""


@layers.register("lstm")
class LSTM(Recurrent):
    """i, f, g, o = W_ih x_t + b + W_hh h_{t-1};  c = sig(f) c + sig(i) tanh(g);  y_t = h = sig(o) tanh(c).

    Parameters: weight_ih, weight_hh and bias with the gates in this order, as torch's. State: h and c (B, d_hidden).

    Source: Hochreiter and Schmidhuber 1997, Long Short-Term Memory; Gers et al. 2000.
    """

    Config = LSTMConfig
    gates, biases, parts = 4, {"bias": 4}, ("h", "c")

    def run(self, x: EmberTensor, *state: EmberTensor) -> tuple:
        return lstm(x, self.weight_ih, self.weight_hh, self.bias, *state, reset=resets())
