"""Losses: means over a batch, as scalars."""

from __future__ import annotations

from ember_ml.errors import ShapeError
from ember_ml.ops import cross_entropy as per_row
from ember_ml.ops import linear_cross_entropy as per_row_of_head
from ember_ml.ops import elementwise, log_softmax, maximum, softplus, square, take, where
from ember_ml.tensor import EmberTensor


def cross_entropy(logits: EmberTensor, labels: EmberTensor, ignore: int | None = None, weight: EmberTensor | None = None,
                  smoothing: float = 0.0) -> EmberTensor:
    """Mean of -log softmax(logits)[label] in nats over all rows whose label is not `ignore`.

    Args:
        logits: (..., classes). labels: (...), integers.
        weight: (classes,), of each label in the mean; None for all alike.
        smoothing: share of each label's probability that is spread over all classes. Szegedy et al. 2016, section 7.

    Returns: scalar, in float32 for half-precision logits, else in their dtype. 0 if every label is `ignore`.

    Raises ShapeError if the shapes do not fit.
    """
    wide = logits if logits.dtype.bits >= 32 else logits.astype("float32")
    rows = per_row(wide, labels, ignore)
    if weight is None and smoothing == 0.0:
        return _mean(rows, labels, ignore)
    classes = logits.shape[-1]
    if weight is not None and weight.shape != (classes,):
        raise ShapeError(f"cross_entropy: expected weight of shape ({classes},), got {weight.shape}")
    seen = rows.ones_like() if ignore is None else (labels != ignore).astype(rows.dtype)
    share = seen if weight is None else seen * take(weight.astype(rows.dtype), labels if ignore is None else where(labels != ignore, labels, 0))
    loss = rows * share
    if smoothing:
        everything = -log_softmax(wide, axis=-1)
        everything = everything if weight is None else everything * weight.astype(rows.dtype)
        loss = loss * (1.0 - smoothing) + everything.sum(axis=-1) * seen * (smoothing / classes)
    return loss.sum() / maximum(share.sum(), 1e-30)


def linear_cross_entropy(x: EmberTensor, weight: EmberTensor, labels: EmberTensor, bias: EmberTensor | None = None,
                         ignore: int | None = None, cap: float | None = None, chunk: int | None = None) -> EmberTensor:
    """`cross_entropy` of the logits x W^T + b, a chunk of rows at a time: (rows, classes) is never held.

    Arguments and errors: see `ember_ml.ops.linear_cross_entropy`. Returns: scalar, as `cross_entropy`.
    """
    return _mean(per_row_of_head(x, weight, labels, bias, ignore, cap, chunk), labels, ignore)


def _mean(rows: EmberTensor, labels: EmberTensor, ignore: int | None) -> EmberTensor:
    return rows.mean() if ignore is None else rows.sum() / maximum((labels != ignore).astype(rows.dtype).sum(), 1.0)


def binary_cross_entropy(logits: EmberTensor, target: EmberTensor) -> EmberTensor:
    """Mean of -t log sigmoid(x) - (1 - t) log(1 - sigmoid(x)) over all elements, targets t from 0 to 1, without overflow."""
    _same(logits, target, "binary_cross_entropy")
    return (softplus(logits) - logits * target).mean()


def mse(prediction: EmberTensor, target: EmberTensor) -> EmberTensor:
    """Mean of (prediction - target)^2 over all elements."""
    _same(prediction, target, "mse")
    return square(prediction - target).mean()


def mae(prediction: EmberTensor, target: EmberTensor) -> EmberTensor:
    """Mean of |prediction - target| over all elements."""
    _same(prediction, target, "mae")
    return elementwise.abs(prediction - target).mean()


def huber(prediction: EmberTensor, target: EmberTensor, delta: float = 1.0) -> EmberTensor:
    """Mean over all elements of e^2 / 2 where |e| <= delta, else delta (|e| - delta / 2), e the error. Source: Huber 1964."""
    _same(prediction, target, "huber")
    error = elementwise.abs(prediction - target)
    return where(error <= delta, 0.5 * square(error), delta * (error - 0.5 * delta)).mean()


def smooth_l1(prediction: EmberTensor, target: EmberTensor, beta: float = 1.0) -> EmberTensor:
    """huber(prediction, target, beta) / beta: the mean absolute error, rounded off below beta. Source: Girshick 2015, Fast R-CNN."""
    return huber(prediction, target, beta) * (1.0 / beta)


def _same(a: EmberTensor, b: EmberTensor, name: str):
    if a.shape != b.shape:
        raise ShapeError(f"{name}: expected prediction and target of one shape, got {a.shape} and {b.shape}")
