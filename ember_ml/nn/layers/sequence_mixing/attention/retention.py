"""RetNet's retention: a linear attention with rotary positions and one fixed decay a head."""

from __future__ import annotations

import math

from ember_ml.errors import ConfigError
from ember_ml.nn.layers.channel_mixing.dense import Dense, DenseConfig
from ember_ml.nn.layers.sequence_mixing.attention.causal import positions
from ember_ml.nn.layers.sequence_mixing.attention.rope import RoPEConfig, rotate
from ember_ml.nn.layers.sequence_mixing.base import SequenceMixer, state_dtype
from ember_ml.nn.packing import resets
from ember_ml.ops import linear_attention, ones, permute_dims, random, reshape, rms_norm, silu, split, tensor, zeros
from ember_ml.registry import Size, config, layers
from ember_ml.tensor import EmberTensor


@config
class RetentionConfig:
    """d_input: channels. heads: of an even width. expand_v: value channels per channel. norm_eps: of the norm over each head's output."""

    d_input: Size
    heads: Size = 4
    expand_v: Size = 2
    norm_eps: float = 1e-5


@layers.register("retention")
class Retention(SequenceMixer):
    """For each head i, with q, k, v, g = in_proj(x), q and k rotated by their positions, neighbouring channels in pairs:

        S_t = gamma_i S_{t-1} + k_t v_t^T;  y_t = S_t^T q_t / sqrt(dk);  gamma_i = 1 - 2^-(5 + i);  out = out_proj(norm(y) silu(g))

    The norm is RMSNorm without a factor.

    Args:
        config: see RetentionConfig. key: random key of the initial weights.

    Parameters: in_proj (2 d + 2 expand_v d, d), rows q, k, v, g, and out_proj, as Dense without bias.
    State: S (B, heads, dk, dv) and position (B,).

    Source: Sun et al. 2023, Retentive Network, section 2.
    """

    Config = RetentionConfig
    cannot_pack = None

    def __init__(self, config: RetentionConfig, key: EmberTensor | None = None):
        self.config = c = config
        if c.d_input % (2 * c.heads):
            raise ConfigError(f"retention: expected d_input = {c.d_input} to be a multiple of 2 heads; received heads={c.heads}")
        first, second = random.split(key if key is not None else random.next_key())
        wide = c.expand_v * c.d_input
        self.in_proj = Dense(DenseConfig(c.d_input, 2 * c.d_input + 2 * wide, False), key=first)
        self.out_proj = Dense(DenseConfig(wide, c.d_input, False), key=second)

    def forward(self, x: EmberTensor, state=None):
        """(B, L, d_input) to the same shape."""
        c, (batch, length, d) = self.config, x.shape
        wide, width = c.expand_v * d, d // c.heads
        qk, v, g = split(self.in_proj(x), (2 * d, wide, wide), axis=-1)
        heads_first = permute_dims(reshape(qk, (batch, length, 2 * c.heads, width)), (0, 2, 1, 3))
        turned = permute_dims(rotate(heads_first, positions(batch, length, state, x), RoPEConfig(interleaved=True)), (0, 2, 1, 3))
        q, k = split(turned, 2, axis=2)
        decay = tensor([[[[math.log1p(-2.0 ** -(5 + i))] for i in range(c.heads)]]], dtype=x.dtype, like=x)
        y, S = linear_attention(q, k, reshape(v, (batch, length, c.heads, -1)), decay,
                                initial=None if state is None else state["S"], scale=1.0 / math.sqrt(width), reset=resets())
        y = reshape(rms_norm(y, ones(y.shape[-1:], y.dtype, like=y), eps=c.norm_eps), g.shape)
        return self.out_proj(y * silu(g)), None if state is None else {"S": S, "position": state["position"] + length}

    def initial_state(self, batch: int, dtype="float32"):
        """A zero state, in float32 at least, and position 0."""
        c, like = self.config, self.out_proj.weight
        width = c.d_input // c.heads
        return {"S": zeros((batch, c.heads, width, c.expand_v * width), state_dtype(dtype), like=like),
                "position": zeros((batch,), "int32", like=like)}
