"""Stages that ask a trained model: for what its head says of sequences, or for how a text goes on."""

from __future__ import annotations

from typing import Any

from ember_ml.nn.models.base import Model
from ember_ml.nn.models.generation import complete
from ember_ml.nn.pipeline.batches import in_batches
from ember_ml.ops import softmax
from ember_ml.tensor import EmberTensor


class Prediction:
    """A stage of a pipeline: sequences to what the model's head says of them.

    A classifier's probabilities (N, classes), a regressor's numbers (N, outputs), a language model's logits (N, L, vocab); without a head
    the hidden states.

    Args:
        model: any model. batch: sequences at a time.
    """

    def __init__(self, model: Model, batch: int = 64):
        self.model, self.batch = model, batch

    def __call__(self, data: Any) -> EmberTensor:
        """Tokens (N, L) or channels (N, L, D), or (inputs, lengths) of padded ones, to the head's output."""
        return in_batches(self._said, self.model, data, self.batch)

    def _said(self, inputs, segments):
        y, _ = self.model(inputs, segments=segments)
        return softmax(y, axis=-1) if self.model.config.head == "classifier" else y


class Completion:
    """A stage of a pipeline: texts to what a language model goes on with.

    Args:
        model: with a head of tokens. alphabet: `encode(text)` gives tokens, `decode(tokens)` text, as a data source's does.
        length: most tokens to add. key: of the sampling; None takes the likeliest token. fields: of SamplingConfig, and `stop`.
    """

    def __init__(self, model: Model, alphabet, length: int, key: EmberTensor | None = None, **fields):
        self.model, self.alphabet, self.length, self.key, self.fields = model, alphabet, length, key, fields

    def __call__(self, texts: list[str]) -> list[str]:
        """The continuations, without the texts themselves."""
        prompts = [self.alphabet.encode(text).tolist() for text in texts]
        return [self.alphabet.decode(tokens) for tokens in complete(self.model, prompts, self.length, self.key, **self.fields)]
