"""The auto-encoder of MAD's compression task: one code for a sequence, and its tokens read from that again."""

from __future__ import annotations

import math
from typing import Literal

from ember_ml.errors import ShapeError
from ember_ml.nn.blocks.base import Block, BlockConfig
from ember_ml.nn.layers.channel_mixing.dense import Dense, DenseConfig
from ember_ml.nn.layers.embedding import Embedding, EmbeddingConfig
from ember_ml.nn.layers.pool import Pool, PoolConfig
from ember_ml.nn.module import Module
from ember_ml.ops import arange, concat, cos, exp, expand_dims, gelu, random, sin
from ember_ml.registry import Size, config, layers
from ember_ml.tensor import EmberTensor


@config
class AutoEncoderConfig:
    """blocks: of the encoder, in order. vocab_size: tokens. length: of the sequences that are read from a code.

    norm: before each map of the decoder. pool: what is the code, the last output or the mean of all.
    """

    blocks: list[BlockConfig]
    vocab_size: Size
    length: Size
    norm: str = "layer_norm"
    pool: Literal["last", "mean"] = "last"


class AutoEncoder(Module):
    """logits_p = W_3 norm(gelu(W_2 norm(gelu(W_1 norm(code + place_p))))) for p = 0 ... length - 1, code = pool(blocks(embedding(tokens))).

    place_p = [sin(p w), cos(p w)] with w_j = 10000^(-j / (d / 2 - 1)).

    Args:
        config: see AutoEncoderConfig. key: random key of the initial weights.

    Parameters: embedding, blocks; norms.{0, 1, 2} and maps.{0, 1, 2} as Dense.

    Source: Poli et al. 2024, Mechanistic Design and Scaling of Hybrid Architectures (MAD), section 3.
    """

    Config = AutoEncoderConfig

    def __init__(self, config: AutoEncoderConfig, key: EmberTensor | None = None):
        self.config = c = config
        keys = random.split(key if key is not None else random.next_key(), len(c.blocks) + 4)
        first, last = c.blocks[0].d_input, c.blocks[-1].d_input
        if last % 2 or last < 4:
            raise ShapeError(f"auto-encoder: expected an even number of channels, at least 4, got {last}")
        self.embedding = Embedding(EmbeddingConfig(c.vocab_size, first), key=keys[-1])
        self.blocks = [Block(b, key=k) for b, k in zip(c.blocks, keys)]
        self.pool = Pool(PoolConfig(last, c.pool))
        self.norms = [layers.instantiate(c.norm, d_input=last) for _ in range(3)]
        self.maps = [Dense(DenseConfig(last, width), key=k) for width, k in zip((last, last, c.vocab_size), keys[-4:-1])]

    def encode(self, tokens: EmberTensor) -> EmberTensor:
        """Tokens (B, L) to codes (B, d)."""
        x = self.embedding(tokens)
        for block in self.blocks:
            x, _ = block(x)
        return self.pool(x)[0]

    def forward(self, tokens: EmberTensor) -> EmberTensor:
        """Tokens (B, L) to logits (B, length, vocab)."""
        y = expand_dims(self.encode(tokens), 1) + _places(self.config.length, self.maps[0].weight)
        for i, (norm, dense) in enumerate(zip(self.norms, self.maps)):
            y = dense(norm(y if i == 0 else gelu(y)))
        return y


def _places(length: int, like: EmberTensor) -> EmberTensor:
    """(length, d) in the dtype of `like`, a weight (., d)."""
    half = like.shape[1] // 2
    rates = exp(arange(half, like=like).astype(like.dtype) * (-math.log(10000.0) / (half - 1)))
    angles = expand_dims(arange(length, like=like).astype(like.dtype), 1) * rates
    return concat([sin(angles), cos(angles)], axis=-1)
