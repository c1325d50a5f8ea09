"""RWKV's channel mixing: a perceptron that looks one position back."""

from __future__ import annotations

from ember_ml.nn.layers.channel_mixing.dense import Dense, DenseConfig
from ember_ml.nn.layers.sequence_mixing.base import SequenceMixer
from ember_ml.nn.layers.sequence_mixing.rwkv import initial_mix, token_shift
from ember_ml.ops import random, relu, sigmoid, square, zeros
from ember_ml.registry import Size, config, layers
from ember_ml.tensor import EmberTensor


@config
class RWKVChannelMixingConfig:
    """d_input: channels. d_inner: hidden channels, None for 4 d_input. gated: versions 4, 5 and 6; without, version 7."""

    d_input: Size
    d_inner: Size | None = None
    gated: bool = True


@layers.register("rwkv_channel_mixing")
class RWKVChannelMixing(SequenceMixer):
    """y_t = sigmoid(W_r x_r) W_v relu(W_k x_k)^2, with the mixtures x_p = x_t + mix_p (x_{t-1} - x_t); without the sigmoid if not gated.

    It has a state, the previous input, and so counts as a sequence mixer.

    Args:
        config: see RWKVChannelMixingConfig. key: random key of the initial weights.

    Parameters: mix_k (d_input,), key (d_inner, d_input), value (d_input, d_inner) as Dense without bias; mix_r and receptance if gated.
    State: the last input (B, d_input).

    Source: Peng et al. 2023, RWKV, section 3.2; Peng et al. 2025, RWKV-7 Goose, section 4.3.
    """

    Config = RWKVChannelMixingConfig
    cannot_pack = None

    def __init__(self, config: RWKVChannelMixingConfig, key: EmberTensor | None = None):
        self.config = c = config
        keys = random.split(key if key is not None else random.next_key(), 3)
        inner = c.d_inner or 4 * c.d_input
        self.mix_k, self.mix_r = initial_mix(c.d_input), initial_mix(c.d_input) if c.gated else None
        self.key = Dense(DenseConfig(c.d_input, inner, False), key=keys[0])
        self.value = Dense(DenseConfig(inner, c.d_input, False), key=keys[1])
        self.receptance = Dense(DenseConfig(c.d_input, c.d_input, False), key=keys[2]) if c.gated else None

    def forward(self, x: EmberTensor, state=None):
        """(B, L, d_input) to the same shape."""
        change = token_shift(x, state)
        y = self.value(square(relu(self.key(x + change * self.mix_k))))
        if self.config.gated:
            y = y * sigmoid(self.receptance(x + change * self.mix_r))
        return y, None if state is None else x[:, -1].astype(state.dtype)

    def initial_state(self, batch: int, dtype="float32"):
        """Zero before the first position."""
        return zeros((batch, self.config.d_input), dtype, like=self.mix_k)
