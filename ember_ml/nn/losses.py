"""Losses: means over a batch, as scalars."""

from __future__ import annotations

from ember_ml.errors import ShapeError
from ember_ml.ops import cross_entropy as per_row
from ember_ml.ops import elementwise, maximum, square
from ember_ml.tensor import EmberTensor


def cross_entropy(logits: EmberTensor, labels: EmberTensor, ignore: int | None = None) -> EmberTensor:
    """Mean of -log softmax(logits)[label] in nats over all rows whose label is not `ignore`.

    Args:
        logits: (..., classes). labels: (...), integers.

    Returns: scalar, in float32 for half-precision logits, else in their dtype. 0 if every label is `ignore`.
    """
    wide = logits if logits.dtype.bits >= 32 else logits.astype("float32")
    rows = per_row(wide, labels, ignore)
    if ignore is None:
        return rows.mean()
    return rows.sum() / maximum((labels != ignore).astype(rows.dtype).sum(), 1.0)


def mse(prediction: EmberTensor, target: EmberTensor) -> EmberTensor:
    """Mean of (prediction - target)^2 over all elements."""
    _same(prediction, target, "mse")
    return square(prediction - target).mean()


def mae(prediction: EmberTensor, target: EmberTensor) -> EmberTensor:
    """Mean of |prediction - target| over all elements."""
    _same(prediction, target, "mae")
    return elementwise.abs(prediction - target).mean()


def _same(a: EmberTensor, b: EmberTensor, name: str):
    if a.shape != b.shape:
        raise ShapeError(f"{name}: expected prediction and target of one shape, got {a.shape} and {b.shape}")
