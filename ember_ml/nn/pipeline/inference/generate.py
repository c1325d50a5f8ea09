"""Sampling from a language model, one token at a time through `step`."""

from __future__ import annotations

from collections.abc import Iterator

from ember_ml.errors import ShapeError
from ember_ml.nn.models.base import Model
from ember_ml.ops import argmax, random
from ember_ml.tensor import EmberTensor


def generate(model: Model, prompt: EmberTensor, length: int, key: EmberTensor | None = None,
             temperature: float = 1.0, allowed: int | None = None) -> Iterator[EmberTensor]:
    """Yields `length` tokens after the prompt, each int32 (B,).

    Args:
        model: a model with a head.
        prompt: tokens (B, P), P >= 1; read in one pass, which leaves the state for the steps.
        key: random key; None takes the most likely token each time.
        temperature: divides the logits; above 0.
        allowed: only tokens below this number; None for all rows of the head.

    Raises ShapeError for an empty prompt, ValueError for a temperature of 0 or below.
    """
    if prompt.ndim != 2 or prompt.shape[1] == 0:
        raise ShapeError(f"generate: expected a prompt of shape (batch, length), length >= 1; got {prompt.shape}")
    if temperature <= 0:
        raise ValueError(f"generate: expected a temperature above 0, got {temperature}; key=None takes the likeliest token")
    logits, state = model.forward(prompt, model.initial_state(prompt.shape[0]))
    logits = logits[:, -1]
    for i in range(length):
        choice = logits if allowed is None else logits[:, :allowed]
        token = argmax(choice, axis=-1) if key is None else random.categorical(random.fold_in(key, i), choice / temperature)
        yield token
        if i + 1 < length:
            logits, state = model.step(token, state)
