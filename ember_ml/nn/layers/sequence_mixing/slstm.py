"""xLSTM's layer with a scalar memory: exponential gates, and heads that feed back into themselves."""

from __future__ import annotations

from typing import Literal

from ember_ml.errors import ConfigError
from ember_ml.nn import initializers
from ember_ml.nn.layers.channel_mixing.block_diagonal import BlockDiagonal, BlockDiagonalConfig
from ember_ml.nn.layers.channel_mixing.norm import GroupNorm, GroupNormConfig
from ember_ml.nn.layers.sequence_mixing.base import SequenceMixer, state_dtype
from ember_ml.nn.layers.sequence_mixing.short_conv import ShortConv, ShortConvConfig
from ember_ml.nn.packing import resets
from ember_ml.ops import concat, gated_scan, linspace, random, zeros
from ember_ml.ops.recurrence.cells import LSTM as LSTM_CELL
from ember_ml.ops.recurrence.cells import SLSTM as SLSTM_CELL
from ember_ml.registry import Size, config, layers
from ember_ml.tensor import EmberTensor

CELLS = {"slstm": (SLSTM_CELL, ("h", "c", "n", "m")), "lstm": (LSTM_CELL, ("h", "c"))}


@config
class SLSTMConfig:
    """d_input: channels. heads: blocks of channels that feed back into themselves. taps: of the short convolution, None for none.

    cell: "slstm", or "lstm" for the sigmoid gates of an LSTM in the same layer. norm_eps: of the norm over each head.
    """

    d_input: Size
    heads: Size = 4
    taps: Size | None = 4
    cell: Literal["slstm", "lstm"] = "slstm"
    norm_eps: float = 1e-5


@layers.register("slstm")
class SLSTM(SequenceMixer):
    """c = silu(conv(x));  i, f = W_i c, W_f c;  z, o = W_z x, W_o x, each plus R h_{t-1} + b, all of them block-diagonal over the heads

        m_t = max(log sig(f) + m_{t-1}, i);  c_t = e^{log sig(f) + m_{t-1} - m_t} c_{t-1} + e^{i - m_t} tanh(z);  n_t likewise of 1
        h_t = sig(o) c_t / n_t;  y = norm(h)

    Args:
        config: see SLSTMConfig. key: random key of the initial weights.

    Parameters: conv as ShortConv; i_proj, f_proj, z_proj, o_proj as BlockDiagonal; recurrent (heads, n, 4 n), from a head's state to its
    gates i, f, z, o; bias (4 d_input,), gate after gate; norm as GroupNorm over the heads, with the factor 1 + weight.
    State: conv (B, taps - 1, d_input); h, c, n, m (B, d_input); for the lstm cell h and c.

    Source: Beck et al. 2024, xLSTM: Extended Long Short-Term Memory, eq. 8 to 17 and figure 10.
    """

    Config = SLSTMConfig
    cannot_pack = None

    def __init__(self, config: SLSTMConfig, key: EmberTensor | None = None):
        self.config = c = config
        if c.d_input % c.heads:
            raise ConfigError(f"slstm: expected heads to divide d_input = {c.d_input}, received {c.heads}")
        keys = random.split(key if key is not None else random.next_key(), 6)
        width = c.d_input // c.heads
        self.conv = ShortConv(ShortConvConfig(c.d_input, c.taps, True, "silu"), key=keys[0]) if c.taps else None
        blocks = BlockDiagonalConfig(c.d_input, c.heads)
        self.i_proj, self.f_proj, self.z_proj, self.o_proj = (BlockDiagonal(blocks, key=keys[i]) for i in range(1, 5))
        self.recurrent = initializers.fan_in_uniform(keys[5], (c.heads, width, 4 * width), width)
        none = zeros((c.d_input,), like=self.recurrent)
        forget = linspace(3.0, 6.0, c.d_input, like=none)     # a memory of about 20 to 400 positions
        self.bias = concat([none, forget, none, none])
        self.norm = GroupNorm(GroupNormConfig(c.d_input, c.norm_eps, unit_offset=True, bias=False, groups=c.heads))

    def forward(self, x: EmberTensor, state=None):
        """(B, L, d_input) to the same shape."""
        cell, parts = CELLS[self.config.cell]
        c, after = x, {}
        if self.conv is not None:
            c, conv = self.conv(x, None if state is None else state["conv"])
            after = {"conv": conv}
        gates = concat([self.i_proj(c), self.f_proj(c), self.z_proj(x), self.o_proj(x)], axis=-1) + self.bias
        h, last = gated_scan(cell, gates, self.recurrent, None if state is None else [state[part] for part in parts], reset=resets())
        return self.norm(h), None if state is None else {**after, **dict(zip(parts, last))}

    def initial_state(self, batch: int, dtype="float32"):
        """Zeros, in float32 at least but for the convolution's inputs."""
        wide = state_dtype(dtype)
        conv = {} if self.conv is None else {"conv": self.conv.initial_state(batch, dtype)}
        return conv | {part: zeros((batch, self.config.d_input), wide, like=self.bias) for part in CELLS[self.config.cell][1]}
