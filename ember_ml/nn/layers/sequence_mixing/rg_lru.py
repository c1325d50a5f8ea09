"""Griffin's recurrent block: a short convolution and the real-gated linear recurrent unit, under a gate."""

from __future__ import annotations

from ember_ml.errors import ConfigError
from ember_ml.nn import initializers
from ember_ml.nn.layers.channel_mixing.dense import Dense, DenseConfig
from ember_ml.nn.layers.sequence_mixing.base import SequenceMixer, state_dtype
from ember_ml.nn.layers.sequence_mixing.short_conv import ShortConv, ShortConvConfig
from ember_ml.nn.packing import resets
from ember_ml.ops import (
    clip, concat, expand_dims, expm1, gelu_tanh, linear_scan, log, matmul, permute_dims, random, reshape, sigmoid, softplus,
    sqrt, where, zeros,
)
from ember_ml.ops.shape import cut
from ember_ml.registry import Size, config, layers
from ember_ml.tensor import EmberTensor

#: the strongest decay is exp(-8 softplus(decay))
SHARPNESS = 8.0

#: least 1 - a^2 under the root, which has no finite slope at 0
LEAST = 1e-12


@config
class RGLRUConfig:
    """d_input: channels. d_inner: channels of the recurrence, None for d_input. heads: blocks of the gates. taps: of the convolution."""

    d_input: Size
    d_inner: Size | None = None
    heads: Size = 1
    taps: Size = 4


@layers.register("rg_lru")
class RGLRU(SequenceMixer):
    """out = out_proj(gelu(y_proj(x)) h), where h is the unit's state, driven by u = short_conv(x_proj(x)):

        i_t = sigmoid(W_i u_t + b_i),  r_t = sigmoid(W_r u_t + b_r)          (block-diagonal, a block a head)
        a_t = exp(-8 r_t softplus(decay));  h_t = a_t h_{t-1} + sqrt(1 - a_t^2) (i_t u_t)

    At the first position of a sequence (of a packed document) the factor sqrt(1 - a^2) is 1.

    Args:
        config: see RGLRUConfig. key: random key of the initial weights; a^(1/r) starts between 0.9 and 0.999.

    Parameters: x_proj, y_proj, out_proj as Dense; conv as ShortConv; input_gate, recurrence_gate (heads, width, width), inputs first,
    their biases input_bias, recurrence_bias (heads, width); decay (inner,).
    State: conv's inputs, h (B, inner), and started (B, 1): 0 before the first position, then 1.

    Source: De et al. 2024, Griffin, section 2.4 (the first position: RecurrentGemma's code).
    """

    Config = RGLRUConfig
    cannot_pack = None

    def __init__(self, config: RGLRUConfig, key: EmberTensor | None = None):
        self.config = c = config
        inner = c.d_inner or c.d_input
        if inner % c.heads:
            raise ConfigError(f"rg_lru: expected heads to divide the {inner} inner channels, received {c.heads}")
        keys, width = random.split(key if key is not None else random.next_key(), 7), inner // c.heads
        self.x_proj = Dense(DenseConfig(c.d_input, inner), key=keys[0])
        self.y_proj = Dense(DenseConfig(c.d_input, inner), key=keys[1])
        self.conv = ShortConv(ShortConvConfig(inner, c.taps), key=keys[2])
        for name, k in (("input", keys[3]), ("recurrence", keys[4])):
            setattr(self, f"{name}_gate", initializers.fan_in_uniform(k, (c.heads, width, width), width))
            setattr(self, f"{name}_bias", zeros((c.heads, width)))
        # softplus(decay) = -log(a) / 8 for a^2 uniform between 0.9^2 and 0.999^2
        rate = log(random.uniform(keys[5], (inner,), 0.9 ** 2, 0.999 ** 2)) * (-0.5 / SHARPNESS)
        self.decay = log(expm1(rate))
        self.out_proj = Dense(DenseConfig(inner, c.d_input), key=keys[6])

    def forward(self, x: EmberTensor, state=None):
        """(B, L, d_input) to the same shape."""
        gate = gelu_tanh(self.y_proj(x))
        u, conv = self.conv(self.x_proj(x), None if state is None else state["conv"])
        log_a = self._gate(u, self.recurrence_gate, self.recurrence_bias) * (-SHARPNESS * softplus(self.decay))
        factor = sqrt(clip(-expm1(log_a * 2.0), min=LEAST))
        first = cut(factor, 0, 1, axis=1)
        first = first.ones_like() if state is None else 1.0 + (first - 1.0) * expand_dims(state["started"], -1).astype(x.dtype)
        factor, reset = concat([first, cut(factor, 1, x.shape[1], axis=1)], axis=1), resets()
        factor = factor if reset is None else where(expand_dims(reset, -1), 1.0, factor)
        h, last = linear_scan(log_a, factor * self._gate(u, self.input_gate, self.input_bias) * u,
                              None if state is None else state["h"], log_decay=True, reset=reset)
        after = None if state is None else {"conv": conv, "h": last.astype(state["h"].dtype), "started": state["started"].ones_like()}
        return self.out_proj(gate * h.astype(x.dtype)), after

    def _gate(self, u: EmberTensor, weight: EmberTensor, bias: EmberTensor) -> EmberTensor:
        """sigmoid(W u + b), each head by its own block."""
        heads, width = bias.shape
        rows = permute_dims(reshape(u, (-1, heads, width)), (1, 0, 2))
        return sigmoid(reshape(permute_dims(matmul(rows, weight) + expand_dims(bias, 1), (1, 0, 2)), u.shape))

    def initial_state(self, batch: int, dtype="float32"):
        """An empty convolution and a zero state, which is kept in float32 at least."""
        wide, inner = state_dtype(dtype), self.decay.shape[0]
        return {"conv": self.conv.initial_state(batch, dtype), "h": zeros((batch, inner), wide, like=self.decay),
                "started": zeros((batch, 1), wide, like=self.decay)}
