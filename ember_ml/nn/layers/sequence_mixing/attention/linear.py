"""Linear attention: softmax's exponential replaced by a product of features, so that the past is one matrix."""

from __future__ import annotations

from typing import Literal

from ember_ml.errors import ConfigError
from ember_ml.nn.layers.channel_mixing.dense import Dense, DenseConfig
from ember_ml.nn.layers.sequence_mixing.attention.feature_maps import FeatureMap
from ember_ml.nn.layers.sequence_mixing.base import SequenceMixer, state_dtype
from ember_ml.nn.packing import resets
from ember_ml.ops import linear_attention, random, reshape, zeros
from ember_ml.registry import Size, config, layers
from ember_ml.tensor import EmberTensor


@config
class LinearAttentionConfig:
    """The heads and their features.

    Args:
        d_input: channels. heads. expand_k, expand_v: key and value channels per channel of the input.
        feature_map: see FeatureMap. tied: one map for queries and keys.
        norm_q, norm_k: features are divided by their sum (plus 1e-4).
        eps: added to the divisor.
    """

    d_input: Size
    heads: Size = 1
    expand_k: float = 1.0
    expand_v: float = 1.0
    feature_map: Literal["identity", "elu", "dpfp", "dpfp_mad", "t2r", "hedgehog", "taylor", "elementwise_product"] = "elu"
    tied: bool = False
    norm_q: bool = False
    norm_k: bool = False
    eps: float = 1e-12


@layers.register("linear_attention")
class LinearAttention(SequenceMixer):
    """y_t = o_proj(sum_{s<=t} (phi(q_t) . phi'(k_s)) v_s / (phi(q_t) . sum_{s<=t} phi'(k_s) + eps)), causal, for each head.

    Args:
        config: see LinearAttentionConfig. key: random key of the initial weights.

    Parameters: q_proj, k_proj, v_proj, o_proj as Dense without bias; q_map, k_map as FeatureMap, tied if asked for.
    State: sum of phi'(k) [v, 1]^T, (B, heads, features, dv + 1).

    Source: Katharopoulos et al. 2020, Transformers are RNNs, eq. 9.
    """

    Config = LinearAttentionConfig
    cannot_pack = None

    def __init__(self, config: LinearAttentionConfig, key: EmberTensor | None = None):
        self.config = c = config
        wide_k, wide_v = int(c.d_input * c.expand_k), int(c.d_input * c.expand_v)
        if wide_k == 0 or wide_v == 0 or wide_k % c.heads or wide_v % c.heads:
            raise ConfigError(f"linear_attention: expected heads to divide the {wide_k} key and {wide_v} value channels, received {c.heads}")
        keys = random.split(key if key is not None else random.next_key(), 6)
        for name, wide, k in (("q", wide_k, keys[0]), ("k", wide_k, keys[1]), ("v", wide_v, keys[2])):
            setattr(self, f"{name}_proj", Dense(DenseConfig(c.d_input, wide, False), key=k))
        self.q_map = FeatureMap(c.feature_map, wide_k // c.heads, key=keys[3])
        self.k_map = self.q_map if c.tied else FeatureMap(c.feature_map, wide_k // c.heads, key=keys[4])
        self.o_proj = Dense(DenseConfig(wide_v, c.d_input, False), key=keys[5])

    def forward(self, x: EmberTensor, state=None):
        """(B, L, d_input) to the same shape."""
        c, (batch, length, _) = self.config, x.shape
        q, k, v = (reshape(p(x), (batch, length, c.heads, -1)) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = self.q_map(q), self.k_map(k)
        q, k = (t / (t.sum(axis=-1, keepdims=True) + 1e-4) if norm else t for t, norm in ((q, c.norm_q), (k, c.norm_k)))
        y, after = linear_attention(q, k, v, initial=state, normalize=c.eps, reset=resets())
        return self.o_proj(reshape(y, (batch, length, -1))), None if state is None else after

    def initial_state(self, batch: int, dtype="float32"):
        """A zero state, in float32 at least."""
        c, like = self.config, self.o_proj.weight
        width = self.k_proj.weight.shape[0] // c.heads
        features = self.k_map(zeros((1, width), like.dtype, like=like)).shape[-1]
        return zeros((batch, c.heads, features, like.shape[1] // c.heads + 1), state_dtype(dtype), like=like)
