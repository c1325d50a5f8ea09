"""Gated linear units."""

from __future__ import annotations

from ember_ml.nn.layers.activations import ACTIVATIONS, ActivationName
from ember_ml.nn.layers.channel_mixing.base import ChannelMixer
from ember_ml.nn.layers.channel_mixing.dense import Dense, DenseConfig
from ember_ml.ops import random
from ember_ml.registry import Size, config, layers
from ember_ml.tensor import EmberTensor


@config
class GatedLinearConfig:
    """d_input, d_output: channels in and out (out: None for the same). activation: of the gate. bias: of both maps."""

    d_input: Size
    d_output: Size | None = None
    activation: ActivationName = "sigmoid"
    bias: bool = True


@layers.register("gated_linear")
class GatedLinear(ChannelMixer):
    """y = act(gate(x)) up(x): GLU with sigmoid, SwiGLU with silu, GeGLU with gelu, ReGLU with relu, bilinear with identity.

    Args:
        config: see GatedLinearConfig. key: random key of the initial weights.

    Parameters: gate, up (d_output, d_input) as Dense.

    Source: Dauphin et al. 2017, Language Modeling with Gated Convolutional Networks; Shazeer 2020, GLU Variants Improve Transformer.
    """

    Config = GatedLinearConfig

    def __init__(self, config: GatedLinearConfig, key: EmberTensor | None = None):
        self.config = config
        first, second = random.split(key if key is not None else random.next_key())
        self.gate = Dense(DenseConfig(config.d_input, config.d_output, config.bias), key=first)
        self.up = Dense(DenseConfig(config.d_input, config.d_output, config.bias), key=second)

    def forward(self, x: EmberTensor) -> EmberTensor:
        """(..., d_input) to (..., d_output)."""
        return ACTIVATIONS[self.config.activation](self.gate(x)) * self.up(x)
