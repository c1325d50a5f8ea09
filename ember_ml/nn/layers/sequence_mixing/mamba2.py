"""Mamba-2: the selective state space with one decay a head, which is a linear attention with decay (state space duality)."""

from __future__ import annotations

from typing import Literal

from ember_ml.errors import ConfigError
from ember_ml.nn.layers.channel_mixing.dense import Dense, DenseConfig
from ember_ml.nn.layers.channel_mixing.norm import RMSNorm, RMSNormConfig
from ember_ml.nn.layers.sequence_mixing.base import SequenceMixer, state_dtype
from ember_ml.nn.layers.sequence_mixing.mamba import initial_dt_bias
from ember_ml.nn.layers.sequence_mixing.short_conv import ShortConv, ShortConvConfig
from ember_ml.nn.packing import resets
from ember_ml.ops import arange, clip, exp, expand_dims, linear_attention, log, ones, random, reshape, silu, softplus, split, zeros
from ember_ml.registry import Size, config, layers
from ember_ml.tensor import EmberTensor


@config
class Mamba2Config:
    """Sizes and variants.

    Args:
        d_input: channels. d_inner: inner channels, None for expand times as many.
        d_state: state channels, which the heads of a group share. head_dim: inner channels of a head. groups: of heads.
        taps: of the short convolution. bias: of the outer projections. conv_bias: of the convolution.
        dt_limit: lowest and highest step size, the second None for no highest one; None for no bounds.
        norm: of the output: "after" its gate, "before" it, or None. Each group has its own mean. norm_eps: its eps.
        chunk: steps that are worked on at once.
    """

    d_input: Size
    d_state: Size = 64
    expand: Size = 2
    head_dim: Size = 64
    groups: Size = 1
    taps: Size = 4
    bias: bool = False
    conv_bias: bool = True
    d_inner: Size | None = None
    dt_limit: tuple[float, float | None] | None = None
    norm: Literal["after", "before"] | None = "after"
    norm_eps: float = 1e-5
    chunk: Size = 64


@layers.register("mamba2")
class Mamba2(SequenceMixer):
    """Selective state space, for each head:

        z, u, dt = in_proj(x);  x', B, C = silu(short_conv(u));  dt = softplus(dt + dt_bias);  a_t = exp(-exp(A_log) dt_t)
        S_t = a_t S_{t-1} + dt_t B_t x'_t^T;  y_t = S_t^T C_t + D x'_t;  out = out_proj(norm(y silu(z)))

    Args:
        config: see Mamba2Config. key: random key of the initial weights; dt starts between 0.001 and 0.1, A at -1 ... -heads.

    Parameters: in_proj (2 inner + 2 groups d_state + heads, d_input), rows z, x, B, C, dt; out_proj; as Dense. conv as ShortConv over x, B
    and C; dt_bias, A_log, D (heads,); norm as RMSNorm over the inner channels.
    State: conv's inputs and S (B, heads, d_state, head_dim).

    Source: Dao and Gu 2024, Transformers are SSMs, sections 6 and 7.
    """

    Config = Mamba2Config
    cannot_pack = None

    def __init__(self, config: Mamba2Config, key: EmberTensor | None = None):
        self.config = c = config
        inner = c.d_inner or c.expand * c.d_input
        self.heads = inner // c.head_dim
        if inner % c.head_dim or self.heads % c.groups:
            raise ConfigError(f"mamba2: expected head_dim to divide the {inner} inner channels, and groups the heads; received "
                              f"head_dim={c.head_dim}, groups={c.groups}")
        keys = random.split(key if key is not None else random.next_key(), 4)
        self.widths = (inner, c.groups * c.d_state, c.groups * c.d_state)
        self.in_proj = Dense(DenseConfig(c.d_input, inner + sum(self.widths) + self.heads, c.bias), key=keys[0])
        self.conv = ShortConv(ShortConvConfig(sum(self.widths), c.taps, c.conv_bias, "silu"), key=keys[1])
        self.dt_bias = initial_dt_bias(keys[2], self.heads)
        self.A_log = log(arange(1, self.heads + 1, dtype="float32", like=self.dt_bias))
        self.D = ones((self.heads,))
        self.norm = RMSNorm(RMSNormConfig(inner, c.norm_eps, groups=c.groups)) if c.norm else None
        self.out_proj = Dense(DenseConfig(inner, c.d_input, c.bias), key=keys[3])

    def forward(self, x: EmberTensor, state=None):
        """(B, L, d_input) to the same shape."""
        c, (batch, length, _) = self.config, x.shape
        z, u, dt = split(self.in_proj(x), (self.widths[0], sum(self.widths), self.heads), axis=-1)
        u, conv = self.conv(u, None if state is None else state["conv"])
        v, B, C = (reshape(part, (batch, length, -1, width)) for part, width in
                   zip(split(u, self.widths, axis=-1), (c.head_dim, c.d_state, c.d_state)))
        dt = softplus(dt + self.dt_bias)
        if c.dt_limit is not None:
            dt = clip(dt, *c.dt_limit)
        dt = expand_dims(dt, -1)
        y, S = linear_attention(C, B, v * dt, dt * -expand_dims(exp(self.A_log), -1), initial=None if state is None else state["S"],
                                reset=resets(), chunk=c.chunk)
        y = reshape(y + v * expand_dims(self.D, -1), z.shape)
        if c.norm == "before":
            y = self.norm(y) * silu(z)
        else:
            y = y * silu(z) if c.norm is None else self.norm(y * silu(z))
        return self.out_proj(y), None if state is None else {"conv": conv, "S": S}

    def initial_state(self, batch: int, dtype="float32"):
        """An empty convolution and a zero state, which is kept in float32 at least."""
        shape = (batch, self.heads, self.config.d_state, self.config.head_dim)
        return {"conv": self.conv.initial_state(batch, dtype), "S": zeros(shape, state_dtype(dtype), like=self.D)}
