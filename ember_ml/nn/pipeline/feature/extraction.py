"""Sequences to vectors, by the hidden states of a model."""

from __future__ import annotations

from typing import Any

from ember_ml.nn.models.base import Model
from ember_ml.nn.pipeline.batches import in_batches
from ember_ml.ops import expand_dims, maximum
from ember_ml.tensor import EmberTensor


class FeatureExtraction:
    """A stage of a pipeline: sequences to the means of their hidden states, (N, d_input), before pool and head.

        f = sum_t real_t h_t / sum_t real_t,   h = norm(blocks(embedding(x)))

    Args:
        model: any model. batch: sequences at a time.
    """

    def __init__(self, model: Model, batch: int = 64):
        self.model, self.batch = model, batch

    def __call__(self, data: Any) -> EmberTensor:
        """Tokens (N, L) or channels (N, L, D), or (inputs, lengths) of padded ones, to features (N, d_input)."""
        return in_batches(self._features, self.model, data, self.batch)

    def _features(self, inputs, segments):
        h, _ = self.model.hidden(inputs, segments=segments)
        if segments is None:
            return h.mean(axis=1)
        real = expand_dims((segments != 0).astype(h.dtype), 2)
        return (h * real).sum(axis=1) / maximum(real.sum(axis=1), 1.0)
