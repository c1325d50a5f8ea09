"""Mamba: a state space whose step, input and output depend on the token."""

from __future__ import annotations

import math

from ember_ml.nn import initializers
from ember_ml.nn.layers.channel_mixing.dense import Dense, DenseConfig
from ember_ml.nn.layers.sequence_mixing.base import SequenceMixer
from ember_ml.nn.layers.sequence_mixing.short_conv import ShortConv, ShortConvConfig
from ember_ml.ops import (
    arange, broadcast_to, clip, exp, expm1, log, ones, random, selective_scan, silu, softplus, split, zeros,
)
from ember_ml.registry import Size, config, layers
from ember_ml.tensor import EmberTensor


@config
class MambaConfig:
    """d_input: channels. d_state: states per inner channel. expand: inner channels per channel. taps: of the short convolution.

    dt_rank: width through which the step size is projected; None for ceil(d_input / 16). bias: of the outer projections.
    conv_bias: of the short convolution.
    """

    d_input: Size
    d_state: Size = 16
    expand: Size = 2
    taps: Size = 4
    dt_rank: Size | None = None
    bias: bool = False
    conv_bias: bool = True


@layers.register("mamba")
class Mamba(SequenceMixer):
    """Selective state space.

        u, z = in_proj(x);  u <- silu(short_conv(u));  r, B, C = x_proj(u);  dt = softplus(dt_proj(r))
        h_t = exp(dt A) h_{t-1} + dt u_t B_t;  y = C_t . h_t + D u_t;  out = out_proj(y silu(z)),  A = -exp(A_log)

    Args:
        config: see MambaConfig. key: random key of the initial weights; dt starts between 0.001 and 0.1, A at -(1 ... d_state).

    Parameters: in_proj, x_proj, dt_proj, out_proj as Dense; conv as ShortConv; A_log (inner, d_state), D (inner,).
    State: the convolution's inputs and h (B, inner, d_state).

    Source: Gu and Dao 2023, Mamba: Linear-Time Sequence Modeling with Selective State Spaces, section 3.
    """

    Config = MambaConfig

    def __init__(self, config: MambaConfig, key: EmberTensor | None = None):
        self.config = c = config
        keys = random.split(key if key is not None else random.next_key(), 6)
        inner, rank = c.expand * c.d_input, c.dt_rank or -(-c.d_input // 16)
        self.in_proj = Dense(DenseConfig(c.d_input, 2 * inner, c.bias), key=keys[0])
        self.conv = ShortConv(ShortConvConfig(inner, c.taps, c.conv_bias, "silu"), key=keys[1])
        self.x_proj = Dense(DenseConfig(inner, rank + 2 * c.d_state, False), key=keys[2])
        self.dt_proj = Dense(DenseConfig(rank, inner), key=keys[3])
        first = exp(initializers.uniform(keys[4], (inner,), 1.0) * (0.5 * math.log(100.0)) + math.log(0.01))
        first = clip(first, low=1e-4)
        self.dt_proj.bias = first + log(-expm1(-first))      # the inverse of softplus
        self.A_log = log(broadcast_to(arange(1, c.d_state + 1, dtype="float32", like=first), (inner, c.d_state)))
        self.D = ones((inner,))
        self.out_proj = Dense(DenseConfig(inner, c.d_input, c.bias), key=keys[5])

    def forward(self, x: EmberTensor, state=None):
        """(B, L, d_input) to the same shape."""
        u, z = split(self.in_proj(x), 2, axis=-1)
        u, conv = self.conv(u, None if state is None else state["conv"])
        n = self.config.d_state
        r, B, C = split(self.x_proj(u), (self.dt_proj.weight.shape[1], n, n), axis=-1)
        y, h = selective_scan(u, softplus(self.dt_proj(r)), -exp(self.A_log), B, C, self.D, None if state is None else state["h"])
        return self.out_proj(y * silu(z)), None if state is None else {"conv": conv, "h": h}

    def initial_state(self, batch: int, dtype="float32"):
        """An empty convolution and a zero state, which is kept in float32 at least."""
        wide = "float32" if dtype in ("float16", "bfloat16") else dtype
        return {"conv": self.conv.initial_state(batch, dtype), "h": zeros((batch, *self.A_log.shape), wide, like=self.D)}
