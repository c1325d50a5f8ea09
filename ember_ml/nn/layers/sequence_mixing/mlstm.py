"""xLSTM's layers with a matrix memory: the one of the first models, and the leaner one of the large models."""

from __future__ import annotations

import math

from ember_ml.errors import ConfigError
from ember_ml.nn import initializers
from ember_ml.nn.layers.channel_mixing.block_diagonal import BlockDiagonal, BlockDiagonalConfig
from ember_ml.nn.layers.channel_mixing.dense import Dense, DenseConfig
from ember_ml.nn.layers.channel_mixing.norm import GroupNorm, GroupNormConfig
from ember_ml.nn.layers.sequence_mixing.base import SequenceMixer, state_dtype
from ember_ml.nn.layers.sequence_mixing.short_conv import ShortConv, ShortConvConfig
from ember_ml.nn.packing import resets
from ember_ml.ops import concat, linspace, mlstm, ones, random, reshape, sigmoid, silu, split, tanh, zeros
from ember_ml.registry import Size, config, layers
from ember_ml.tensor import EmberTensor


def _gates(key: EmberTensor, width: int, heads: int) -> Dense:
    """Input and forget gates of all heads. They begin open by their biases alone: i about 0, f from 3 to 6 over the heads."""
    made = Dense(DenseConfig(width, 2 * heads), key=key)
    made.weight = made.weight.zeros_like()
    forget = linspace(3.0, 6.0, heads, like=made.weight)
    made.bias = concat([initializers.normal(key, (heads,), 0.1), forget])
    return made


class _MatrixMemory(SequenceMixer):
    """The cell between a layer's projections: q, k, v (B, L, H, .) and gates (B, L, 2 H) to h, and the state's part of it."""

    cannot_pack = None

    def remember(self, q, k, v, gates, state, eps):
        """(h (B, L, H dv), {"memory", "m"} or None)."""
        i, f = split(gates, 2, axis=-1)
        h, after = mlstm(q, k, v, i, f, None if state is None else (state["memory"], state["m"]), eps=eps, reset=resets())
        return reshape(h, (*h.shape[:2], -1)), None if state is None else dict(zip(("memory", "m"), after))

    def empty_memory(self, batch: int, heads: int, dk: int, dv: int, dtype, like):
        """{"memory", "m"} before the first position, in float32 at least."""
        wide = state_dtype(dtype)
        return {"memory": zeros((batch, heads, dk, dv + 1), wide, like=like), "m": zeros((batch, heads), wide, like=like)}


@config
class MLSTMConfig:
    """d_input: channels. heads: of the memory. expand: inner channels per channel, rounded up to a multiple of `multiple_of`.

    taps: of the short convolution. block: channels that q, k and v are projected in together. bias: of the outer projections.
    eps: added to the divisor of the cell. norm_eps: of the norm over each head.
    """

    d_input: Size
    heads: Size = 4
    expand: float = 2.0
    taps: Size = 4
    block: Size = 4
    bias: bool = False
    multiple_of: Size = 64
    eps: float = 1e-6
    norm_eps: float = 1e-5


@layers.register("mlstm")
class MLSTM(_MatrixMemory):
    """u, z = in_proj(x);  c = silu(conv(u));  q, k = W_q c, W_k c;  v = W_v u, all three block-diagonal;  i, f = gates([q, k, v])

        y = out_proj((norm(mlstm(q, k / sqrt(dk), v, i, f)) + skip c) silu(z))

    Args:
        config: see MLSTMConfig. key: random key of the initial weights.

    Parameters: in_proj, gates, out_proj as Dense; conv as ShortConv; q_proj, k_proj, v_proj as BlockDiagonal; norm as GroupNorm over the
    heads, with the factor 1 + weight; skip (inner,). State: conv (B, taps - 1, inner); memory (B, heads, dk, dk + 1) with the normaliser
    as its last column, in the scale e^-m; m (B, heads).

    Source: Beck et al. 2024, xLSTM: Extended Long Short-Term Memory, section 2.3 and figure 11.
    """

    Config = MLSTMConfig

    def __init__(self, config: MLSTMConfig, key: EmberTensor | None = None):
        self.config = c = config
        self.inner = inner = math.ceil(c.expand * c.d_input / c.multiple_of) * c.multiple_of
        if inner % c.heads or inner % c.block:
            raise ConfigError(f"mlstm: expected heads and block to divide the {inner} inner channels, received heads={c.heads}, "
                              f"block={c.block}")
        keys = random.split(key if key is not None else random.next_key(), 7)
        self.in_proj = Dense(DenseConfig(c.d_input, 2 * inner, c.bias), key=keys[0])
        self.conv = ShortConv(ShortConvConfig(inner, c.taps, True, "silu"), key=keys[1])
        blocks = BlockDiagonalConfig(inner, inner // c.block)
        self.q_proj, self.k_proj, self.v_proj = (BlockDiagonal(blocks, key=k) for k in (keys[2], keys[3], keys[4]))
        self.gates = _gates(keys[5], 3 * inner, c.heads)
        self.norm = GroupNorm(GroupNormConfig(inner, c.norm_eps, unit_offset=True, bias=False, groups=c.heads))
        self.skip = ones((inner,), like=self.in_proj.weight)
        self.out_proj = Dense(DenseConfig(inner, c.d_input, c.bias), key=keys[6])

    def forward(self, x: EmberTensor, state=None):
        """(B, L, d_input) to the same shape."""
        u, z = split(self.in_proj(x), 2, axis=-1)
        c, conv = self.conv(u, None if state is None else state["conv"])
        q, k, v = self.q_proj(c), self.k_proj(c), self.v_proj(u)
        gates = self.gates(concat([q, k, v], axis=-1))
        heads = (*x.shape[:2], self.config.heads, -1)
        width = self.inner // self.config.heads
        h, memory = self.remember(reshape(q, heads), reshape(k * width ** -0.5, heads), reshape(v, heads), gates, state, self.config.eps)
        y = self.out_proj((self.norm(h) + self.skip * c) * silu(z))
        return y, None if state is None else {"conv": conv, **memory}

    def initial_state(self, batch: int, dtype="float32"):
        """Nothing remembered."""
        width = self.inner // self.config.heads
        return {"conv": self.conv.initial_state(batch, dtype),
                **self.empty_memory(batch, self.config.heads, width, width, dtype, self.skip)}


@config
class LargeMLSTMConfig:
    """d_input: channels. heads: of the memory. expand_k, expand_v: key and value channels per channel of the input.

    gate_cap: input and forget gates are gate_cap tanh(. / gate_cap). bias: of the outer projections and the norm. eps: added to the divisor
    of the cell. norm_eps: of the norm over each head.
    """

    d_input: Size
    heads: Size = 4
    expand_k: float = 0.5
    expand_v: float = 1.0
    gate_cap: float = 15.0
    bias: bool = False
    eps: float = 1e-6
    norm_eps: float = 1e-6


@layers.register("mlstm_large")
class LargeMLSTM(_MatrixMemory):
    """q, k, v, o = in_proj(x);  i, f = cap(gates(x));  y = out_proj(norm(mlstm(q / sqrt(dk), k, v, i, f)) sigmoid(o)).

    Args:
        config: see LargeMLSTMConfig. key: random key of the initial weights.

    Parameters: in_proj (2 expand_k d + 2 expand_v d, d), rows q, k, v, o; gates, out_proj; as Dense; norm as GroupNorm over the heads.
    State: memory (B, heads, dk, dv + 1) with the normaliser as its last column, in the scale e^-m; m (B, heads).

    Source: Beck et al. 2025, xLSTM 7B: A Recurrent LLM for Fast and Efficient Inference, section 3.
    """

    Config = LargeMLSTMConfig

    def __init__(self, config: LargeMLSTMConfig, key: EmberTensor | None = None):
        self.config = c = config
        self.wide_k, self.wide_v = int(c.d_input * c.expand_k), int(c.d_input * c.expand_v)
        if self.wide_k == 0 or self.wide_v == 0 or self.wide_k % c.heads or self.wide_v % c.heads:
            raise ConfigError(f"mlstm_large: expected heads to divide the {self.wide_k} key and {self.wide_v} value channels, received "
                              f"heads={c.heads}")
        keys = random.split(key if key is not None else random.next_key(), 3)
        self.in_proj = Dense(DenseConfig(c.d_input, 2 * (self.wide_k + self.wide_v), c.bias), key=keys[0])
        self.gates = _gates(keys[1], c.d_input, c.heads)
        self.norm = GroupNorm(GroupNormConfig(self.wide_v, c.norm_eps, bias=c.bias, groups=c.heads))
        self.out_proj = Dense(DenseConfig(self.wide_v, c.d_input, c.bias), key=keys[2])

    def forward(self, x: EmberTensor, state=None):
        """(B, L, d_input) to the same shape."""
        c = self.config
        q, k, v, o = split(self.in_proj(x), (self.wide_k, self.wide_k, self.wide_v, self.wide_v), axis=-1)
        gates = tanh(self.gates(x) * (1.0 / c.gate_cap)) * c.gate_cap
        heads, dk = (*x.shape[:2], c.heads, -1), self.wide_k // c.heads
        h, memory = self.remember(reshape(q * dk ** -0.5, heads), reshape(k, heads), reshape(v, heads), gates, state, c.eps)
        return self.out_proj(self.norm(h) * sigmoid(o)), memory

    def initial_state(self, batch: int, dtype="float32"):
        """Nothing remembered."""
        heads = self.config.heads
        return self.empty_memory(batch, heads, self.wide_k // heads, self.wide_v // heads, dtype, self.norm.weight)
