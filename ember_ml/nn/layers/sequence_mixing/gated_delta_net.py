"""Gated DeltaNet: a matrix memory that forgets by a gate and corrects what a key already holds."""

from __future__ import annotations

import math

from ember_ml.errors import ConfigError
from ember_ml.nn.layers.channel_mixing.dense import Dense, DenseConfig
from ember_ml.nn.layers.channel_mixing.norm import RMSNorm, RMSNormConfig
from ember_ml.nn.layers.sequence_mixing.base import SequenceMixer, state_dtype
from ember_ml.nn.layers.sequence_mixing.mamba import initial_dt_bias
from ember_ml.nn.layers.sequence_mixing.short_conv import ShortConv, ShortConvConfig
from ember_ml.nn.packing import resets
from ember_ml.ops import exp, gated_delta_rule, log, random, reshape, rsqrt, sigmoid, silu, softplus, split, square, zeros
from ember_ml.ops import sum as total
from ember_ml.registry import Size, config, layers
from ember_ml.tensor import EmberTensor

#: under the root of the length of queries and keys
LENGTH_EPS = 1e-6


@config
class GatedDeltaNetConfig:
    """d_input: channels. heads: of values. key_heads: of queries and keys, a divisor of heads, None for heads.

    key_dim, value_dim: channels of a head. taps: of the short convolution. norm_eps: of the norm over each head's output.
    """

    d_input: Size
    heads: Size = 4
    key_heads: Size | None = None
    key_dim: Size = 64
    value_dim: Size = 64
    taps: Size = 4
    norm_eps: float = 1e-6


@layers.register("gated_delta_net")
class GatedDeltaNet(SequenceMixer):
    """For each head, with q, k, v = silu(short_conv(in_proj(x))), q and k of length one:

        beta_t = sigmoid(b_t);  alpha_t = exp(-exp(A_log) softplus(a_t + dt_bias))
        S_t = alpha_t (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T;  y_t = S_t^T q_t / sqrt(key_dim)
        out = out_proj(norm(y) silu(z))

    Args:
        config: see GatedDeltaNetConfig. key: random key of the initial weights.

    Parameters: in_proj, rows q, k, v, z; gates (2 heads, d_input), rows b, a; out_proj; as Dense without bias. conv as ShortConv over q, k,
    v; dt_bias, A_log (heads,); norm as RMSNorm over value_dim. State: conv's inputs and S (B, heads, key_dim, value_dim).

    Source: Yang et al. 2024, Gated Delta Networks, section 3.
    """

    Config = GatedDeltaNetConfig
    cannot_pack = None

    def __init__(self, config: GatedDeltaNetConfig, key: EmberTensor | None = None):
        self.config = c = config
        self.key_heads = c.key_heads or c.heads
        if c.heads % self.key_heads:
            raise ConfigError(f"gated_delta_net: expected key_heads to divide heads = {c.heads}, received {c.key_heads}")
        keys = random.split(key if key is not None else random.next_key(), 6)
        self.widths = (self.key_heads * c.key_dim, self.key_heads * c.key_dim, c.heads * c.value_dim)
        self.in_proj = Dense(DenseConfig(c.d_input, sum(self.widths) + self.widths[2], False), key=keys[0])
        self.gates = Dense(DenseConfig(c.d_input, 2 * c.heads, False), key=keys[1])
        self.conv = ShortConv(ShortConvConfig(sum(self.widths), c.taps, False, "silu"), key=keys[2])
        self.dt_bias = initial_dt_bias(keys[3], c.heads)
        self.A_log = log(random.uniform(keys[4], (c.heads,), 1.0, 16.0))
        self.norm = RMSNorm(RMSNormConfig(c.value_dim, c.norm_eps))
        self.out_proj = Dense(DenseConfig(self.widths[2], c.d_input, False), key=keys[5])

    def forward(self, x: EmberTensor, state=None):
        """(B, L, d_input) to the same shape."""
        c, (batch, length, _) = self.config, x.shape
        qkv, z = split(self.in_proj(x), (sum(self.widths), self.widths[2]), axis=-1)
        qkv, conv = self.conv(qkv, None if state is None else state["conv"])
        qk, v = split(qkv, (2 * self.widths[0], self.widths[2]), axis=-1)
        qk, v = reshape(qk, (batch, length, -1, c.key_dim)), reshape(v, (batch, length, -1, c.value_dim))
        q, k = split(qk * rsqrt(total(square(qk), axis=-1, keepdims=True) + LENGTH_EPS), 2, axis=2)
        b, a = split(self.gates(x), 2, axis=-1)
        decay = softplus(a + self.dt_bias) * -exp(self.A_log)
        y, S = gated_delta_rule(q, k, v, sigmoid(b), decay, initial=None if state is None else state["S"],
                                scale=1.0 / math.sqrt(c.key_dim), reset=resets())
        y = reshape(self.norm(y), z.shape) * silu(z)
        return self.out_proj(y), None if state is None else {"conv": conv, "S": S}

    def initial_state(self, batch: int, dtype="float32"):
        """An empty convolution and a zero state, which is kept in float32 at least."""
        c = self.config
        shape = (batch, c.heads, c.key_dim, c.value_dim)
        return {"conv": self.conv.initial_state(batch, dtype), "S": zeros(shape, state_dtype(dtype), like=self.dt_bias)}
