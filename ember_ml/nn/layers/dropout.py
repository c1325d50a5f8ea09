"""Dropout."""

from __future__ import annotations

from ember_ml.nn import scope
from ember_ml.nn.layers.channel_mixing.base import ChannelMixer
from ember_ml.ops import random, where
from ember_ml.registry import Rate, Size, config, layers
from ember_ml.tensor import EmberTensor


def dropout(x: EmberTensor, p: float) -> EmberTensor:
    """In training each element is 0 with probability p, else x / (1 - p); in evaluation, x. The key comes from the scope.

    Source: Srivastava et al. 2014, Dropout.
    """
    if p == 0.0 or scope.current() is None:
        return x
    keep = random.bernoulli(scope.next_key(), 1.0 - p, x.shape)
    return where(keep, x * (1.0 / (1.0 - p)), 0.0)


@config
class DropoutConfig:
    """d_input: channels, any. p: probability of 0."""

    d_input: Size
    p: Rate = 0.1


@layers.register("dropout")
class Dropout(ChannelMixer):
    """In training x / (1 - p) where a coin of chance 1 - p falls right, else 0; in evaluation x. Source: Srivastava et al. 2014, Dropout."""

    Config = DropoutConfig

    def __init__(self, config: DropoutConfig, key: EmberTensor | None = None):
        self.config = config

    def forward(self, x: EmberTensor) -> EmberTensor:
        """(..., d_input), same shape."""
        return dropout(x, self.config.p)
