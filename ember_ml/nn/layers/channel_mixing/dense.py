"""The linear layer."""

from __future__ import annotations

from ember_ml.nn import initializers
from ember_ml.nn.layers.channel_mixing.base import ChannelMixer
from ember_ml.nn.module import Module
from ember_ml.ops import linear, random
from ember_ml.registry import Size, config, layers
from ember_ml.tensor import EmberTensor


@config
class DenseConfig:
    """d_input, d_output: channels in and out (out: None for the same). bias: add one."""

    d_input: Size
    d_output: Size | None = None
    bias: bool = True


@layers.register("dense")
class Dense(ChannelMixer):
    """y = x W^T + b, plus what an adapter adds (see `ember_ml.nn.adapters`).

    Args:
        config: see DenseConfig. key: random key of the initial weights, uniform in +-1/sqrt(d_input).

    Parameters: weight (d_output, d_input), bias (d_output,).

    Source: Rosenblatt 1958, The Perceptron.
    """

    Config = DenseConfig

    #: a module whose output is added to y
    adapter: Module | None = None
    #: rows of several maps, one below the other: name -> number of rows; None for one map
    parts: dict[str, int] | None = None
    #: False where a layer reads weight and bias and never calls the map, so that an adapter would have no effect
    called = True

    def __init__(self, config: DenseConfig, key: EmberTensor | None = None):
        self.config = config
        weight_key, bias_key = random.split(key if key is not None else random.next_key())
        d_output = config.d_output or config.d_input
        self.weight = initializers.fan_in_uniform(weight_key, (d_output, config.d_input))
        self.bias = initializers.fan_in_uniform(bias_key, (d_output,), config.d_input) if config.bias else None

    def forward(self, x: EmberTensor) -> EmberTensor:
        """(..., d_input) to (..., d_output)."""
        y = linear(x, self.weight, self.bias)
        return y if self.adapter is None else y + self.adapter(x)
