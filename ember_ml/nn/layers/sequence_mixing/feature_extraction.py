"""Features of a sequence: convolutions for what is near, then a recurrent layer for what is far."""

from __future__ import annotations

from typing import Literal

from ember_ml.errors import ConfigError, UnsupportedOp
from ember_ml.nn import initializers
from ember_ml.nn.layers.activations import ACTIVATIONS, ActivationName
from ember_ml.nn.layers.sequence_mixing.base import SequenceMixer
from ember_ml.nn.module import Module
from ember_ml.nn.packing import current
from ember_ml.ops import concat, conv1d, expand_dims, flip, linear, permute_dims, random, reshape, swap_axes, where, zeros
from ember_ml.ops.conv import earlier_by, same_segment
from ember_ml.ops.shape import cut
from ember_ml.registry import Size, config, layers
from ember_ml.tensor import EmberTensor


@config
class FeatureExtractionConfig:
    """d_input: channels. channels: of each convolution, None for two with 2 d_input. d_output: of the recurrent layer, None for d_input.

    taps: of each convolution. activation: after each of them. recurrent: the layer behind them. causal: a position sees the past alone;
    else the convolutions are centred on it, and there is no state and no step.
    """

    d_input: Size
    channels: list[Size] | None = None
    d_output: Size | None = None
    taps: Size = 3
    activation: ActivationName = "relu"
    recurrent: Literal["lstm", "gru", "rnn"] = "lstm"
    causal: bool = False


class Convolution(Module):
    """One convolution over time, all channels with all. Parameters: weight (d_output, d_input, taps), bias (d_output,)."""

    def __init__(self, d_input: int, d_output: int, taps: int, key: EmberTensor):
        first, second = random.split(key)
        self.weight = initializers.fan_in_uniform(first, (d_output, d_input, taps))
        self.bias = initializers.fan_in_uniform(second, (d_output,), d_input * taps)


def _within(x: EmberTensor, conv: Convolution, ahead: int, segments: EmberTensor) -> EmberTensor:
    """A convolution of packed rows x (B, L, d_input), `ahead` of whose taps lie after the position: no tap reaches another document."""
    taps, seen = conv.weight.shape[2], []
    for j in range(taps):
        away = taps - 1 - ahead - j
        moved = earlier_by(x, away, 1) if away >= 0 else flip(earlier_by(flip(x, axis=1), -away, 1), axis=1)
        seen.append(where(expand_dims(same_segment(segments, away), -1), moved, 0.0))
    weight = reshape(permute_dims(conv.weight, (0, 2, 1)), (conv.weight.shape[0], -1))
    return linear(concat(seen, axis=-1), weight, conv.bias)


@layers.register("feature_extraction")
class FeatureExtraction(SequenceMixer):
    """y = recurrent(act(conv(... act(conv(x))))).

    Args:
        config: see FeatureExtractionConfig. key: random key of the initial weights.

    Parameters: convs.<i> as Convolution; recurrent as LSTM, GRU or RNN. State, if causal: convs, the last taps - 1 inputs of each
    convolution; recurrent, that layer's.

    Source: Sainath et al. 2015, Convolutional, Long Short-Term Memory, Fully Connected Deep Neural Networks.
    """

    Config = FeatureExtractionConfig
    cannot_pack = None

    def __init__(self, config: FeatureExtractionConfig, key: EmberTensor | None = None):
        if not config.causal and config.taps % 2 == 0:
            raise ConfigError(f"feature_extraction: a centred convolution needs an odd number of taps, received {config.taps}; "
                              "or give causal=True")
        self.config = c = config
        widths = [c.d_input, *([2 * c.d_input] * 2 if c.channels is None else c.channels)]
        keys = random.split(key if key is not None else random.next_key(), len(widths) + 1)
        self.convs = [Convolution(a, b, c.taps, k) for a, b, k in zip(widths, widths[1:], keys)]
        self.recurrent = layers.instantiate(c.recurrent, widths[-1], c.d_output or c.d_input, key=keys[-1])

    def features(self, x: EmberTensor, state=None):
        """What the convolutions make of x (B, L, d_input): (B, L, channels[-1]), and their inputs to come back to."""
        past, after, act = self.config.taps - 1, [], ACTIVATIONS[self.config.activation]
        packing = current()
        padding = (past, 0) if self.config.causal else (past // 2, past // 2)
        for i, conv in enumerate(self.convs):
            if state is not None:
                x = concat([state[i].astype(x.dtype), x], axis=1)
                after.append(cut(x, x.shape[1] - past, x.shape[1], axis=1).astype(state[i].dtype))
            if packing is None:
                x = act(swap_axes(conv1d(swap_axes(x), conv.weight, conv.bias, padding=padding if state is None else 0)))
            else:
                x = act(_within(x, conv, padding[1], packing.segments))
        return x, after

    def forward(self, x: EmberTensor, state=None):
        """(B, L, d_input) to (B, L, d_output)."""
        x, after = self.features(x, None if state is None else state["convs"])
        y, last = self.recurrent(x, None if state is None else state["recurrent"])
        return y, None if state is None else {"convs": after, "recurrent": last}

    def initial_state(self, batch: int, dtype="float32"):
        """Zeros before the first position. Raises UnsupportedOp if the convolutions are centred."""
        if not self.config.causal:
            raise UnsupportedOp("feature_extraction: centred convolutions read the future, they cannot run step by step; call forward on "
                                "the whole sequence, or build the layer with causal=True")
        convs = [zeros((batch, self.config.taps - 1, conv.weight.shape[1]), dtype, like=conv.bias) for conv in self.convs]
        return {"convs": convs, "recurrent": self.recurrent.initial_state(batch, dtype)}
