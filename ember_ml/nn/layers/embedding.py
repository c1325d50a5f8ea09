"""Token embedding."""

from __future__ import annotations

from ember_ml.nn import initializers
from ember_ml.nn.module import Module
from ember_ml.ops import matmul, min, random, swap_axes, take
from ember_ml.ops.index import checks_values
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
        """Integers (...) to (..., d_output). Raises IndexError for tokens that there are not, where values are looked at (NumPy, `em.debug_checks`)."""
        if isinstance(tokens, EmberTensor) and tokens.dtype.kind == "int" and tokens.size and checks_values(tokens) and (low := min(tokens).item()) < 0:
            raise IndexError(f"embedding: expected tokens in [0, {self.config.vocab_size - 1}], got {low}")
        return take(self.weight, tokens, axis=0)

    def as_head(self, x: EmberTensor) -> EmberTensor:
        """Logits of a head tied to this table: (..., d_output) to (..., vocab_size)."""
        return matmul(x, swap_axes(self.weight))
