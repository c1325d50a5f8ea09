"""The minimal gated recurrent unit, whose gates know the input alone: a linear recurrence."""

from __future__ import annotations

from ember_ml.errors import ShapeError
from ember_ml.nn.layers.channel_mixing.dense import Dense, DenseConfig
from ember_ml.nn.layers.sequence_mixing.base import SequenceMixer, state_dtype
from ember_ml.nn.packing import resets
from ember_ml.ops import linear_scan, random, sigmoid, softplus, split, zeros
from ember_ml.registry import Size, config, layers
from ember_ml.tensor import EmberTensor


@config
class MinGRUConfig:
    """d_input: channels in. d_hidden: channels of state and output, None for d_input. bias: add it."""

    d_input: Size
    d_hidden: Size | None = None
    bias: bool = True


@layers.register("min_gru")
class MinGRU(SequenceMixer):
    """z, c = proj(x_t);  h_t = (1 - sigmoid(z)) h_{t-1} + sigmoid(z) c.

    Args:
        config: see MinGRUConfig. key: random key of the initial weights.

    Parameters: proj (2 d_hidden, d_input) as Dense. State: h (B, d_hidden).

    Source: Feng et al. 2024, Were RNNs All We Needed?, section 3.1.
    """

    Config = MinGRUConfig
    cannot_pack = None

    def __init__(self, config: MinGRUConfig, key: EmberTensor | None = None):
        self.config = config
        self.proj = Dense(DenseConfig(config.d_input, 2 * (config.d_hidden or config.d_input), config.bias), key=key)

    def forward(self, x: EmberTensor, state=None):
        """(B, L, d_input) to (B, L, d_hidden)."""
        if x.ndim != 3:                                    # the scan itself takes any rank
            raise ShapeError(f"min_gru: expected x of shape (batch, length, d_input), got {x.shape}")
        z, c = split(self.proj(x), 2, axis=-1)
        h, last = linear_scan(-softplus(z), sigmoid(z) * c, state, log_decay=True, reset=resets())
        return h.astype(x.dtype), None if state is None else last.astype(state.dtype)

    def initial_state(self, batch: int, dtype="float32"):
        """Zero, in float32 at least."""
        return zeros((batch, self.proj.weight.shape[0] // 2), state_dtype(dtype), like=self.proj.weight)
