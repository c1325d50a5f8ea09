"""Token embedding."""

from __future__ import annotations

from ember_ml.nn import initializers
from ember_ml.nn.module import Module
from ember_ml.ops import matmul, random, swap_axes, take
from ember_ml.registry import Size, config
from ember_ml.tensor import EmberTensor


@config
class EmbeddingConfig:
    """vocab_size: number of tokens. d_output: channels. std: of the initial normal values."""

    vocab_size: Size
    d_output: Size
    std: float = 0.02


class Embedding(Module):
    """Rows of a table by token. Parameters: weight (vocab_size, d_output)."""

    Config = EmbeddingConfig

    def __init__(self, config: EmbeddingConfig, key: EmberTensor | None = None):
        self.config = config
        key = key if key is not None else random.next_key()
        self.weight = initializers.normal(key, (config.vocab_size, config.d_output), config.std)

    def forward(self, tokens: EmberTensor) -> EmberTensor:
        """Integers (...) to (..., d_output)."""
        return take(self.weight, tokens, axis=0)

    def as_head(self, x: EmberTensor) -> EmberTensor:
        """Logits of a head tied to this table: (..., d_output) to (..., vocab_size)."""
        return matmul(x, swap_axes(self.weight))
