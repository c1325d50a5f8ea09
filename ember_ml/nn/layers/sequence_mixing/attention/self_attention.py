"""Self-attention: multi-head, grouped or multi-query; causal, bidirectional or within a sliding window."""

from __future__ import annotations

from ember_ml.errors import ConfigError, UnsupportedOp
from ember_ml.nn.layers.channel_mixing.dense import Dense, DenseConfig
from ember_ml.nn.layers.channel_mixing.norm import RMSNorm, RMSNormConfig
from ember_ml.nn.layers.sequence_mixing.attention.causal import empty_cache, extend_cache, positions
from ember_ml.nn.layers.sequence_mixing.attention.rope import RoPEConfig, rotate
from ember_ml.nn.layers.sequence_mixing.base import SequenceMixer
from ember_ml.nn.layers.sequence_mixing.short_conv import ShortConv, ShortConvConfig
from ember_ml.nn.packing import current
from ember_ml.ops import concat, permute_dims, random, reshape, scaled_dot_product_attention, split
from ember_ml.registry import Size, config, layers
from ember_ml.tensor import EmberTensor


@config
class SelfAttentionConfig:
    """The heads, what they see, and how they know where they are.

    Args:
        d_input: channels.
        heads: query heads. bias: of the projection to queries, keys and values, and of the output unless `out_bias` says otherwise.
        kv_heads: key and value heads, a divisor of heads: 1 for multi-query, None for as many as heads.
        head_dim: channels of a head, None for d_input / heads.
        out_bias: of the output projection, None for as `bias`.
        causal: a position sees itself and the past alone; else all. Without it there is no state and no step.
        window: positions that a query sees, its own included; None for all. Needs `causal`.
        rope: rotary positions (an empty table for the defaults), None for none.
        qk_norm: RMSNorm over the channels of each query and key head, before the rotation. norm_eps: its eps.
        taps: of a short causal convolution over queries, keys and values, None for none.
    """

    d_input: Size
    heads: Size = 1
    bias: bool = True
    kv_heads: Size | None = None
    head_dim: Size | None = None
    out_bias: bool | None = None
    causal: bool = True
    window: Size | None = None
    rope: RoPEConfig | None = None
    qk_norm: bool = False
    norm_eps: float = 1e-6
    taps: Size | None = None


@layers.register("self_attention")
class SelfAttention(SequenceMixer):
    """y = out_proj(softmax(q k^T / sqrt(head_dim)) v) with q, k, v = in_proj(x) in heads.

    Args:
        config: see SelfAttentionConfig. key: random key of the initial weights.

    Parameters: in_proj ((heads + 2 kv_heads) head_dim, d_input), rows q, k, v, heads contiguous in each; out_proj; as Dense. q_norm,
    k_norm as RMSNorm with `qk_norm`; conv as ShortConv with `taps`.
    State: keys (rotated) and values so far, (B, kv_heads, positions, head_dim) each, which grow with every position, or keep the last
    window - 1; position (B,); conv's inputs.

    Source: Vaswani et al. 2017, Attention Is All You Need, section 3.2; Shazeer 2019, Fast Transformer Decoding (multi-query); Ainslie et
    al. 2023, GQA; Su et al. 2021, RoFormer.
    """

    Config = SelfAttentionConfig
    cannot_pack = None

    def __init__(self, config: SelfAttentionConfig, key: EmberTensor | None = None):
        self.config = c = config
        if c.head_dim is None and c.d_input % c.heads:
            raise ConfigError(f"self_attention: expected heads to divide d_input = {c.d_input}, received {c.heads}; or give head_dim")
        self.kv_heads, self.width = c.kv_heads or c.heads, c.head_dim or c.d_input // c.heads
        if c.heads % self.kv_heads:
            raise ConfigError(f"self_attention: expected kv_heads to divide heads = {c.heads}, received {c.kv_heads}")
        if c.window is not None and not c.causal:
            raise ConfigError(f"self_attention: a window needs causal=True; received window={c.window}, causal=False")
        if c.rope is not None and (self.width % 2 if c.rope.dims is None else c.rope.dims > self.width):
            raise ConfigError(f"self_attention: expected rope.dims to be even and at most head_dim = {self.width}, received {c.rope.dims}")
        keys = random.split(key if key is not None else random.next_key(), 3)
        wide = (c.heads + 2 * self.kv_heads) * self.width
        self.in_proj = Dense(DenseConfig(c.d_input, wide, c.bias), key=keys[0])
        self.in_proj.parts = {"q_proj": c.heads * self.width, "k_proj": self.kv_heads * self.width, "v_proj": self.kv_heads * self.width}
        self.conv = ShortConv(ShortConvConfig(wide, c.taps, c.bias), key=keys[2]) if c.taps else None
        self.q_norm, self.k_norm = ((RMSNorm(RMSNormConfig(self.width, c.norm_eps)), RMSNorm(RMSNormConfig(self.width, c.norm_eps)))
                                    if c.qk_norm else (None, None))
        self.out_proj = Dense(DenseConfig(c.heads * self.width, c.d_input, c.bias if c.out_bias is None else c.out_bias), key=keys[1])

    def forward(self, x: EmberTensor, state=None):
        """(B, L, d_input) to the same shape."""
        c, (B, L, _) = self.config, x.shape
        qkv, conv = self.in_proj(x), None
        if self.conv is not None:
            qkv, conv = self.conv(qkv, None if state is None else state["conv"])
        qkv = permute_dims(reshape(qkv, (B, L, c.heads + 2 * self.kv_heads, self.width)), (0, 2, 1, 3))
        both = (c.heads, self.kv_heads)
        qk, v = split(qkv, (sum(both), self.kv_heads), axis=1)
        if c.qk_norm:
            q, k = split(qk, both, axis=1)
            qk = concat([self.q_norm(q), self.k_norm(k)], axis=1)
        if c.rope is not None:
            qk = rotate(qk, positions(B, L, state, x), c.rope)
        q, k = split(qk, both, axis=1)
        after = None
        if state is not None:
            k, v, after = extend_cache(state, k, v, c.window)
            if conv is not None:
                after["conv"] = conv
        packing = current()
        if packing is None:
            y = scaled_dot_product_attention(q, k, v, causal=c.causal, window=c.window)
        else:
            y = scaled_dot_product_attention(q, k, v, mask=packing.mask(c.causal, c.window))
        return self.out_proj(reshape(permute_dims(y, (0, 2, 1, 3)), (B, L, c.heads * self.width))), after

    def initial_state(self, batch: int, dtype="float32"):
        """No keys and no values yet. Raises UnsupportedOp if the layer is bidirectional."""
        if not self.config.causal:
            raise UnsupportedOp("self_attention: a bidirectional layer reads the future, it cannot run step by step; call forward on "
                                "the whole sequence")
        state = empty_cache(batch, self.kv_heads, self.width, dtype, self.in_proj.weight)
        return state if self.conv is None else state | {"conv": self.conv.initial_state(batch, dtype)}
