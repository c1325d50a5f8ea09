"""The short causal convolution that stands before most recurrences, with its cache for decoding."""

from __future__ import annotations

from ember_ml.nn import initializers
from ember_ml.nn.layers.activations import ACTIVATIONS, ActivationName
from ember_ml.nn.layers.sequence_mixing.base import SequenceMixer
from ember_ml.nn.packing import current
from ember_ml.ops import concat, random, short_conv, swap_axes, zeros
from ember_ml.ops import sum as total
from ember_ml.ops.shape import cut
from ember_ml.registry import Size, config, layers
from ember_ml.tensor import EmberTensor


@config
class ShortConvConfig:
    """d_input: channels. taps: positions that an output sees. bias: add one. activation: of the output."""

    d_input: Size
    taps: Size = 4
    bias: bool = True
    activation: ActivationName = "identity"


@layers.register("short_conv")
class ShortConv(SequenceMixer):
    """y_t = act(bias + sum_j weight[:, j] x_{t - taps + 1 + j}), each channel by itself, causal.

    Args:
        config: see ShortConvConfig. key: random key of the initial weights, uniform in +-1/sqrt(taps).

    Parameters: weight (d_input, taps), the last tap on the present; bias (d_input,). State: the last taps - 1 inputs,
    (B, taps - 1, d_input).

    Source: Fu et al. 2023, Hungry Hungry Hippos, section 3 (the shift); Gu and Dao 2023, Mamba, section 3.4.
    """

    Config = ShortConvConfig
    cannot_pack = None

    def __init__(self, config: ShortConvConfig, key: EmberTensor | None = None):
        self.config = config
        weight_key, bias_key = random.split(key if key is not None else random.next_key())
        self.weight = initializers.fan_in_uniform(weight_key, (config.d_input, config.taps), config.taps)
        self.bias = initializers.fan_in_uniform(bias_key, (config.d_input,), config.taps) if config.bias else None

    def forward(self, x: EmberTensor, state=None, channels_last: bool = True):
        """(B, L, d_input) to the same shape; channels_last: what follows works along channels, else along time."""
        before, one = self.config.taps - 1, x.shape[1] == 1
        if state is not None:
            x = concat([state.astype(x.dtype), x], axis=1)
        length, act = x.shape[1], ACTIVATIONS[self.config.activation]
        if state is not None and one:                      # its window is all there is: no convolution to set up
            y = total(x * swap_axes(self.weight), axis=1, keepdims=True)
            y = act(y if self.bias is None else y + self.bias)
        else:
            packing, silu = current(), self.config.activation == "silu"
            segments = None if packing is None else packing.segments
            y = short_conv(swap_axes(x), self.weight, self.bias, segments, silu=silu, channels_last=channels_last)
            y = y if channels_last else swap_axes(y)
            y = y if silu else act(y)
            y = y if state is None else cut(y, before, length, axis=1)
        state = None if state is None else cut(x, length - before, length, axis=1).astype(state.dtype)
        return y, state

    def initial_state(self, batch: int, dtype="float32"):
        """Zeros before the first position."""
        return zeros((batch, self.config.taps - 1, self.config.d_input), dtype, like=self.weight)
