"""Multi-head self-attention."""

from __future__ import annotations

from ember_ml.errors import ConfigError
from ember_ml.nn.layers.channel_mixing.dense import Dense, DenseConfig
from ember_ml.nn.layers.sequence_mixing.base import SequenceMixer
from ember_ml.ops import concat, permute_dims, random, reshape, scaled_dot_product_attention, zeros
from ember_ml.registry import Size, config, layers
from ember_ml.tensor import EmberTensor


@config
class SelfAttentionConfig:
    """d_input: channels. heads: must divide them. bias: of both projections."""

    d_input: Size
    heads: Size = 1
    bias: bool = True


@layers.register("self_attention")
class SelfAttention(SequenceMixer):
    """y = out_proj(softmax(q k^T / sqrt(head_dim)) v), causal, with q, k, v = in_proj(x) in heads.

    Args:
        config: see SelfAttentionConfig. key: random key of the initial weights.

    Parameters: in_proj (3 d_input, d_input), rows q, k, v, heads contiguous in each; out_proj, as Dense. State: keys and
    values so far, (B, H, positions, head_dim) each: it grows with every position.

    Source: Vaswani et al. 2017, Attention Is All You Need, section 3.2.
    """

    Config = SelfAttentionConfig

    def __init__(self, config: SelfAttentionConfig, key: EmberTensor | None = None):
        if config.d_input % config.heads:
            raise ConfigError(f"self_attention: expected heads to divide d_input = {config.d_input}, received {config.heads}")
        self.config = config
        first, second = random.split(key if key is not None else random.next_key())
        self.in_proj = Dense(DenseConfig(config.d_input, 3 * config.d_input, config.bias), key=first)
        self.out_proj = Dense(DenseConfig(config.d_input, config.d_input, config.bias), key=second)

    def forward(self, x: EmberTensor, state=None):
        """(B, L, d_input) to the same shape."""
        (B, L, D), H = x.shape, self.config.heads
        qkv = permute_dims(reshape(self.in_proj(x), (B, L, 3, H, D // H)), (2, 0, 3, 1, 4))
        q, k, v = qkv[0], qkv[1], qkv[2]
        after = None
        if state is not None:
            k, v = concat([state["k"], k], axis=2), concat([state["v"], v], axis=2)
            after = {"k": k, "v": v}
        y = scaled_dot_product_attention(q, k, v, causal=True)
        return self.out_proj(reshape(permute_dims(y, (0, 2, 1, 3)), (B, L, D))), after

    def initial_state(self, batch: int, dtype="float32"):
        """No keys and no values yet."""
        shape = (batch, self.config.heads, 0, self.config.d_input // self.config.heads)
        return {name: zeros(shape, dtype, like=self.in_proj.weight) for name in ("k", "v")}
