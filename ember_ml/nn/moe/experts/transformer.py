"""A transformer block as an expert."""

from __future__ import annotations

from ember_ml.nn.layers.channel_mixing.mlp import MLP, MLPConfig
from ember_ml.nn.layers.channel_mixing.norm import RMSNorm, RMSNormConfig
from ember_ml.nn.layers.activations import ActivationName
from ember_ml.nn.layers.sequence_mixing.attention.self_attention import SelfAttention, SelfAttentionConfig
from ember_ml.nn.layers.sequence_mixing.base import SequenceMixer
from ember_ml.ops import random
from ember_ml.registry import Size, config, layers
from ember_ml.tensor import EmberTensor


@config
class TransformerConfig:
    """d_input: channels. heads: of the attention. d_inner, activation: of the perceptron."""

    d_input: Size
    heads: Size = 1
    d_inner: Size | None = None
    activation: ActivationName = "gelu_tanh"


@layers.register("transformer")
class Transformer(SequenceMixer):
    """u = x + attention(norm1(x)); y = u + mlp(norm2(u)), causal, with RMS norms.

    Parameters: norm1, attention, norm2, mlp. State: the attention's.

    Source: Vaswani et al. 2017, Attention Is All You Need, with the norms first (Xiong et al. 2020).
    """

    Config = TransformerConfig
    cannot_pack = None

    def __init__(self, config: TransformerConfig, key: EmberTensor | None = None):
        self.config = c = config
        first, second = random.split(key if key is not None else random.next_key())
        self.norm1, self.norm2 = RMSNorm(RMSNormConfig(c.d_input)), RMSNorm(RMSNormConfig(c.d_input))
        self.attention = SelfAttention(SelfAttentionConfig(c.d_input, c.heads), key=first)
        self.mlp = MLP(MLPConfig(c.d_input, c.d_inner, c.activation), key=second)

    def forward(self, x: EmberTensor, state=None):
        """(B, L, d_input) to the same shape."""
        y, state = self.attention(self.norm1(x), state)
        x = x + y
        return x + self.mlp(self.norm2(x)), state

    def initial_state(self, batch: int, dtype="float32"):
        return self.attention.initial_state(batch, dtype)
