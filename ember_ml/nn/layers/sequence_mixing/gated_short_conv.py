"""LFM2's operator: a short convolution between two gates."""

from __future__ import annotations

from ember_ml.nn.layers.channel_mixing.dense import Dense, DenseConfig
from ember_ml.nn.layers.sequence_mixing.base import SequenceMixer
from ember_ml.nn.layers.sequence_mixing.short_conv import ShortConv, ShortConvConfig
from ember_ml.ops import random, split
from ember_ml.registry import Size, config, layers
from ember_ml.tensor import EmberTensor


@config
class GatedShortConvConfig:
    """d_input: channels. taps: of the convolution. bias: of both projections and the convolution."""

    d_input: Size
    taps: Size = 3
    bias: bool = False


@layers.register("gated_short_conv")
class GatedShortConv(SequenceMixer):
    """y = out_proj(C short_conv(B u)) with B, C, u = in_proj(x).

    Args:
        config: see GatedShortConvConfig. key: random key of the initial weights.

    Parameters: in_proj (3 d_input, d_input), rows B, C, u, and out_proj as Dense; conv as ShortConv. State: the convolution's last inputs,
    (B, taps - 1, d_input).

    Source: Liquid AI 2025, LFM2 (linear input-varying convolution).
    """

    Config = GatedShortConvConfig
    cannot_pack = None

    def __init__(self, config: GatedShortConvConfig, key: EmberTensor | None = None):
        self.config = c = config
        keys = random.split(key if key is not None else random.next_key(), 3)
        self.in_proj = Dense(DenseConfig(c.d_input, 3 * c.d_input, c.bias), key=keys[0])
        self.conv = ShortConv(ShortConvConfig(c.d_input, c.taps, c.bias), key=keys[1])
        self.out_proj = Dense(DenseConfig(c.d_input, c.d_input, c.bias), key=keys[2])

    def forward(self, x: EmberTensor, state=None):
        """(B, L, d_input) to the same shape."""
        B, C, u = split(self.in_proj(x), 3, axis=-1)
        y, state = self.conv(B * u, state)
        return self.out_proj(C * y), state

    def initial_state(self, batch: int, dtype="float32"):
        """Zeros before the first position."""
        return self.conv.initial_state(batch, dtype)
