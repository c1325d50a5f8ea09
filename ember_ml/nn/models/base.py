"""Model: an embedding, a list of blocks, a norm and a head."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, Literal

from ember_ml import weights
from ember_ml.backend import using
from ember_ml.errors import ConfigError, ShapeError
from ember_ml.nn.blocks.base import Block, BlockConfig
from ember_ml.nn.layers.channel_mixing.dense import Dense, DenseConfig
from ember_ml.nn.layers.dropout import dropout
from ember_ml.nn.layers.embedding import Embedding, EmbeddingConfig
from ember_ml.nn.module import Module
from ember_ml.ops import random
from ember_ml.registry import Rate, Size, config, from_dict, layers, models, to_dict
from ember_ml.tensor import EmberTensor


@config
class ModelConfig:
    """A model as a list of blocks.

    Args:
        blocks: in order; each is a BlockConfig or a dict of its fields.
        vocab_size: tokens; None for a model of real-valued channels, without embedding and head.
        norm: registered name of the norm after the last block, None for none.
        head: "tied" to the embedding, "dense" for its own, None for hidden states.
        vocab_multiple: the embedding has the next multiple of this many rows.
        dropout: on the embedding.
    """

    blocks: list[BlockConfig]
    vocab_size: Size | None = None
    norm: str | None = None
    head: Literal["tied", "dense"] | None = None
    vocab_multiple: Size = 1
    dropout: Rate = 0.0


@models.register("model")
class Model(Module):
    """logits = head(norm(blocks(embedding(tokens)))).

    Args:
        config: see ModelConfig. key: random key of the initial weights.

    forward and step return (y, states), one state per block.
    """

    Config = ModelConfig

    def __init__(self, config: ModelConfig, key: EmberTensor | None = None):
        if not config.blocks:
            raise ConfigError("model: expected at least one block, received none")
        self.config = c = config
        keys = random.split(key if key is not None else random.next_key(), len(c.blocks) + 2)
        width = c.blocks[0].d_input
        if c.head is not None and c.vocab_size is None:
            raise ConfigError(f"model: head={c.head!r} needs vocab_size")
        rows = -(-(c.vocab_size or 0) // c.vocab_multiple) * c.vocab_multiple
        self.embedding = Embedding(EmbeddingConfig(rows, width), key=keys[-1]) if c.vocab_size else None
        self.blocks = [Block(b, key=k) for b, k in zip(c.blocks, keys)]
        self.norm = layers.instantiate(c.norm, c.blocks[-1].d_input) if c.norm else None
        self.head = Dense(DenseConfig(c.blocks[-1].d_input, rows, bias=False), key=keys[-2]) if c.head == "dense" else None

    def forward(self, x: EmberTensor, state: list | None = None) -> tuple[EmberTensor, list]:
        """Tokens (B, L), or channels (B, L, d_input), to logits (B, L, vocab) or hidden states (B, L, d_input)."""
        return self._run(x, state, "forward", 2)

    def step(self, x: EmberTensor, state: list) -> tuple[EmberTensor, list]:
        """One position: tokens (B,) or channels (B, d_input)."""
        return self._run(x, state, "step", 1)

    def initial_state(self, batch: int, dtype="float32") -> list:
        """The states of all blocks before the first position."""
        return [block.initial_state(batch, dtype) for block in self.blocks]

    def hidden(self, x: EmberTensor, state: list | None = None) -> tuple[EmberTensor, list]:
        """Like forward, without the head: (B, L, d_input) after the norm."""
        return self._body(x, state, "forward", 2)

    def _run(self, x, state, form: str, axes: int):
        x, after = self._body(x, state, form, axes)
        if self.config.head == "tied":
            x = self.embedding.as_head(x)
        elif self.head is not None:
            x = self.head(x)
        return x, after

    def _body(self, x, state, form: str, axes: int):
        if self.embedding is not None:
            if x.ndim != axes:
                raise ShapeError(f"model: expected tokens of shape {'(batch, length)' if axes == 2 else '(batch,)'}, got {x.shape}")
            x = dropout(self.embedding(x), self.config.dropout)
        after = []
        for i, block in enumerate(self.blocks):
            x, s = getattr(block, form)(x, None if state is None else state[i])
            after.append(s)
        return (self.norm(x) if self.norm else x), after

    @classmethod
    def from_config(cls, values: dict[str, Any] | ModelConfig, key: EmberTensor | None = None) -> Model:
        """The model of a config or of its plain dict. Raises ConfigError."""
        return cls(values if isinstance(values, cls.Config) else from_dict(cls.Config, values), key=key)

    def save(self, path, metadata: dict[str, str] | None = None):
        """Writes weights and config into one safetensors file, atomically."""
        weights.save(path, self.tensors(), config=to_dict(self.config), metadata=metadata)

    @staticmethod
    def load(path, device: str | None = None) -> Model:
        """The model of a file that `save` wrote, on the current engine or `device`.

        Raises WeightsError for a damaged file or one whose tensors do not fit its config.
        """
        tensors, config, _ = weights.load(path, device=device)
        with using(device) if device else nullcontext():
            model = Model.from_config(config)
        weights.check({k: (t.shape, t.dtype) for k, t in model.tensors().items()},
                      {k: (t.shape, t.dtype) for k, t in tensors.items()}, path)
        model.update(tensors)
        return model
