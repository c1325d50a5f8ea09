"""Gated linear attention: a matrix state with a learned decay for every key channel."""

from __future__ import annotations

import math

from ember_ml.errors import ConfigError
from ember_ml.nn.layers.activations import ACTIVATIONS, ActivationName
from ember_ml.nn.layers.channel_mixing.dense import Dense, DenseConfig
from ember_ml.nn.layers.channel_mixing.norm import RMSNormConfig, RMSNorm
from ember_ml.nn.layers.sequence_mixing.base import SequenceMixer, state_dtype
from ember_ml.nn.packing import resets
from ember_ml.ops import clip, linear_attention, random, reshape, softplus, zeros
from ember_ml.registry import Size, config, layers
from ember_ml.tensor import EmberTensor


@config
class GatedLinearAttentionConfig:
    """d_input: channels. heads. expand_k, expand_v: key and value channels per channel of the input.

    gate: activation of the output gate. decay_rank: width through which the decay is projected. decay_scale: the log
    decay is log sigmoid of the projection over this: larger remembers longer. decay_floor: lowest log decay, None for none.
    eps: of the norm over each head's output.
    """

    d_input: Size
    heads: Size = 4
    expand_k: float = 0.5
    expand_v: float = 1.0
    gate: ActivationName = "silu"
    decay_rank: Size = 16
    decay_scale: float = 16.0
    decay_floor: float | None = None
    eps: float = 1e-5


@layers.register("gated_linear_attention")
class GatedLinearAttention(SequenceMixer):
    """o = W_o (norm(S_t^T q_t / sqrt(dk)) act(W_g x)),  S_t = Diag(alpha_t) S_{t-1} + k_t v_t^T for each head,

        alpha_t = sigmoid(W_2 W_1 x_t + b)^(1 / decay_scale)

    Args:
        config: see GatedLinearAttentionConfig. key: random key of the initial weights.

    Parameters: q_proj, k_proj, v_proj, g_proj, decay_down, decay_up (with bias), o_proj as Dense; norm as RMSNorm over the
    value channels of a head. State: S (B, heads, dk, dv).

    Source: Yang et al. 2023, Gated Linear Attention Transformers with Hardware-Efficient Training.
    """

    Config = GatedLinearAttentionConfig
    cannot_pack = None

    def __init__(self, config: GatedLinearAttentionConfig, key: EmberTensor | None = None):
        self.config = c = config
        wide_k, wide_v = int(c.d_input * c.expand_k), int(c.d_input * c.expand_v)
        if wide_k == 0 or wide_v == 0 or wide_k % c.heads or wide_v % c.heads:
            raise ConfigError(f"gated_linear_attention: expected heads to divide the {wide_k} key and {wide_v} value channels, "
                              f"received heads={c.heads}")
        keys = random.split(key if key is not None else random.next_key(), 7)
        self.q_proj = Dense(DenseConfig(c.d_input, wide_k, False), key=keys[0])
        self.k_proj = Dense(DenseConfig(c.d_input, wide_k, False), key=keys[1])
        self.v_proj = Dense(DenseConfig(c.d_input, wide_v, False), key=keys[2])
        self.g_proj = Dense(DenseConfig(c.d_input, wide_v, False), key=keys[3])
        self.decay_down = Dense(DenseConfig(c.d_input, c.decay_rank, False), key=keys[4])
        self.decay_up = Dense(DenseConfig(c.decay_rank, wide_k), key=keys[5])
        self.norm = RMSNorm(RMSNormConfig(wide_v // c.heads, c.eps))
        self.o_proj = Dense(DenseConfig(wide_v, c.d_input, False), key=keys[6])

    def forward(self, x: EmberTensor, state=None):
        """(B, L, d_input) to the same shape."""
        c, (B, L, _) = self.config, x.shape

        def heads(y):
            return reshape(y, (B, L, c.heads, -1))

        q, k, v = heads(self.q_proj(x)), heads(self.k_proj(x)), heads(self.v_proj(x))
        decay = softplus(-self.decay_up(self.decay_down(x))) * (-1.0 / c.decay_scale)
        decay = heads(decay if c.decay_floor is None else clip(decay, min=c.decay_floor))
        o, after = linear_attention(q, k, v, decay, initial=state, scale=1.0 / math.sqrt(k.shape[-1]), reset=resets())
        o = reshape(self.norm(o), (B, L, -1)) * ACTIVATIONS[c.gate](self.g_proj(x))
        return self.o_proj(o), None if state is None else after

    def initial_state(self, batch: int, dtype="float32"):
        """A zero state, in float32 at least."""
        c = self.config
        shape = (batch, c.heads, self.k_proj.weight.shape[0] // c.heads, self.norm.weight.shape[0])
        return zeros(shape, state_dtype(dtype), like=self.norm.weight)
