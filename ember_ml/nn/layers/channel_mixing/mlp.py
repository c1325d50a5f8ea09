"""The two-layer perceptron."""

from __future__ import annotations

from ember_ml.nn.layers.activations import ACTIVATIONS, ActivationName
from ember_ml.nn.layers.channel_mixing.base import ChannelMixer
from ember_ml.nn.layers.channel_mixing.dense import Dense, DenseConfig
from ember_ml.ops import random
from ember_ml.registry import Size, config, layers
from ember_ml.tensor import EmberTensor


@config
class MLPConfig:
    """d_input: channels. d_inner: hidden channels, None for 4 d_input. activation: between the layers. bias: of both."""

    d_input: Size
    d_inner: Size | None = None
    activation: ActivationName = "gelu_tanh"
    bias: bool = True


@layers.register("mlp")
class MLP(ChannelMixer):
    """y = fc2(activation(fc1(x))).

    Parameters: fc1 (d_inner, d_input), fc2 (d_input, d_inner), as Dense.

    Source: Vaswani et al. 2017, Attention Is All You Need, section 3.3.
    """

    Config = MLPConfig

    def __init__(self, config: MLPConfig, key: EmberTensor | None = None):
        self.config = config
        first, second = random.split(key if key is not None else random.next_key())
        inner = config.d_inner or 4 * config.d_input
        self.fc1 = Dense(DenseConfig(config.d_input, inner, config.bias), key=first)
        self.fc2 = Dense(DenseConfig(inner, config.d_input, config.bias), key=second)

    def forward(self, x: EmberTensor) -> EmberTensor:
        """(..., d_input), same shape."""
        return self.fc2(ACTIVATIONS[self.config.activation](self.fc1(x)))
