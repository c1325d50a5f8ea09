"""Mamba: a state space whose step, input and output depend on the token."""

from __future__ import annotations

import math

from ember_ml.nn import initializers
from ember_ml.nn.layers.channel_mixing.dense import Dense, DenseConfig
from ember_ml.nn.layers.channel_mixing.norm import RMSNorm, RMSNormConfig
from ember_ml.nn.layers.sequence_mixing.base import SequenceMixer, state_dtype
from ember_ml.nn.layers.sequence_mixing.short_conv import ShortConv, ShortConvConfig
from ember_ml.nn.packing import resets
from ember_ml.ops import (
    arange, broadcast_to, exp, expm1, log, ones, random, selective_scan, silu, softplus, split, zeros,
)
from ember_ml.registry import Size, config, layers
from ember_ml.tensor import EmberTensor


def initial_dt_bias(key: EmberTensor, width: int) -> EmberTensor:
    """Biases under softplus for step sizes between 0.001 and 0.1, evenly spread in their log: (width,)."""
    dt = exp(initializers.uniform(key, (width,), 1.0) * (0.5 * math.log(100.0)) + math.log(0.01))
    return dt + log(-expm1(-dt))                           # the inverse of softplus


@config
class MambaConfig:
    """d_input: channels. d_state: states per inner channel. expand: inner channels per channel. taps: of the short convolution.

    dt_rank: width through which the step size is projected; None for ceil(d_input / 16). bias: of the outer projections.
    conv_bias: of the short convolution. inner_norm: RMSNorm on r, B and C. norm_eps: its eps.
    """

    d_input: Size
    d_state: Size = 16
    expand: Size = 2
    taps: Size = 4
    dt_rank: Size | None = None
    bias: bool = False
    conv_bias: bool = True
    inner_norm: bool = False
    norm_eps: float = 1e-6


@layers.register("mamba")
class Mamba(SequenceMixer):
    """Selective state space.

        u, z = in_proj(x);  u <- silu(short_conv(u));  r, B, C = x_proj(u);  dt = softplus(dt_proj(r))
        h_t = exp(dt A) h_{t-1} + dt u_t B_t;  y = C_t . h_t + D u_t;  out = out_proj(y silu(z)),  A = -exp(A_log)

    Args:
        config: see MambaConfig. key: random key of the initial weights; dt starts between 0.001 and 0.1, A at -(1 ... d_state).

    Parameters: in_proj, x_proj, dt_proj, out_proj as Dense; conv as ShortConv; A_log (inner, d_state), D (inner,); with `inner_norm`
    r_norm, B_norm, C_norm as RMSNorm.
    State: the convolution's inputs and h (B, inner, d_state).

    Source: Gu and Dao 2023, Mamba: Linear-Time Sequence Modeling with Selective State Spaces, section 3; inner norms: Lieber et al.
    2024, Jamba.
    """

    Config = MambaConfig
    cannot_pack = None

    def __init__(self, config: MambaConfig, key: EmberTensor | None = None):
        self.config = c = config
        keys = random.split(key if key is not None else random.next_key(), 6)
        inner, rank = c.expand * c.d_input, c.dt_rank or -(-c.d_input // 16)
        self.in_proj = Dense(DenseConfig(c.d_input, 2 * inner, c.bias), key=keys[0])
        self.conv = ShortConv(ShortConvConfig(inner, c.taps, c.conv_bias, "silu"), key=keys[1])
        self.x_proj = Dense(DenseConfig(inner, rank + 2 * c.d_state, False), key=keys[2])
        self.dt_proj = Dense(DenseConfig(rank, inner), key=keys[3])
        self.dt_proj.bias = initial_dt_bias(keys[4], inner)
        self.A_log = log(broadcast_to(arange(1, c.d_state + 1, dtype="float32", like=self.dt_proj.bias), (inner, c.d_state)))
        self.D = ones((inner,))
        if c.inner_norm:
            self.r_norm = RMSNorm(RMSNormConfig(rank, c.norm_eps))
            self.B_norm, self.C_norm = (RMSNorm(RMSNormConfig(c.d_state, c.norm_eps)) for _ in range(2))
        self.out_proj = Dense(DenseConfig(inner, c.d_input, c.bias), key=keys[5])

    def forward(self, x: EmberTensor, state=None):
        """(B, L, d_input) to the same shape."""
        u, z = split(self.in_proj(x), 2, axis=-1)
        u, conv = self.conv(u, None if state is None else state["conv"])
        n = self.config.d_state
        r, B, C = split(self.x_proj(u), (self.dt_proj.weight.shape[1], n, n), axis=-1)
        if self.config.inner_norm:
            r, B, C = self.r_norm(r), self.B_norm(B), self.C_norm(C)
        y, h = selective_scan(u, softplus(self.dt_proj(r)), -exp(self.A_log), B, C, self.D, None if state is None else state["h"],
                              reset=resets())
        return self.out_proj(y * silu(z)), None if state is None else {"conv": conv, "h": h}

    def initial_state(self, batch: int, dtype="float32"):
        """An empty convolution and a zero state, which is kept in float32 at least."""
        return {"conv": self.conv.initial_state(batch, dtype), "h": zeros((batch, *self.A_log.shape), state_dtype(dtype), like=self.D)}
