"""Normalisation layers."""

from __future__ import annotations

from ember_ml.nn.layers.channel_mixing.base import ChannelMixer
from ember_ml.ops import layer_norm, ones, rms_norm, zeros
from ember_ml.registry import Size, config, layers
from ember_ml.tensor import EmberTensor


@config
class NormConfig:
    """d_input: channels. eps: added under the root."""

    d_input: Size
    eps: float = 1e-5


@layers.register("layer_norm")
class LayerNorm(ChannelMixer):
    """(x - mean) / sqrt(var + eps) * weight + bias over the channels. Source: Ba, Kiros and Hinton 2016.

    Parameters: weight, bias (d_input,).
    """

    Config = NormConfig

    def __init__(self, config: NormConfig, key: EmberTensor | None = None):
        self.config = config
        self.weight = ones((config.d_input,))
        self.bias = zeros((config.d_input,))

    def forward(self, x: EmberTensor) -> EmberTensor:
        """(..., d_input), same shape and dtype."""
        return layer_norm(x, self.weight, self.bias, eps=self.config.eps)


@layers.register("rms_norm")
class RMSNorm(ChannelMixer):
    """x / sqrt(mean(x^2) + eps) * weight over the channels. Source: Zhang and Sennrich 2019.

    Parameters: weight (d_input,).
    """

    Config = NormConfig

    def __init__(self, config: NormConfig, key: EmberTensor | None = None):
        self.config = config
        self.weight = ones((config.d_input,))

    def forward(self, x: EmberTensor) -> EmberTensor:
        """(..., d_input), same shape and dtype."""
        return rms_norm(x, self.weight, eps=self.config.eps)
