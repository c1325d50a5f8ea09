"""Cross-entropy over classes, as one op so that no engine keeps the whole softmax for the gradient twice."""

from __future__ import annotations

from ember_ml.errors import ShapeError
from ember_ml.ops.activation import softmax
from ember_ml.ops.declare import op
from ember_ml.ops.dispatch import expect_tensors
from ember_ml.ops.elementwise import clip, where
from ember_ml.ops.index import checks_values, gather_along, one_hot
from ember_ml.ops.reduce import logsumexp
from ember_ml.ops.reduce import max as largest
from ember_ml.ops.reduce import min as smallest
from ember_ml.ops.shape import expand_dims, squeeze
from ember_ml.tensor import EmberTensor


def _cross_entropy_grad(g, _y, logits, labels):
    p = softmax(logits, axis=-1)
    return (p - one_hot(labels, logits.shape[-1], p.dtype)) * expand_dims(g, -1), None


@op(public="cross_entropy", vjp=_cross_entropy_grad)
def cross_entropy_rows(logits, labels):
    """Native form of `cross_entropy`, one value a row; labels are in range."""
    picked = squeeze(gather_along(logits, expand_dims(labels, -1), axis=-1), -1)
    return logsumexp(logits, axis=-1) - picked


def checked_labels(name: str, labels: EmberTensor, classes: int, ignore: int | None) -> tuple[EmberTensor, EmberTensor | None]:
    """(labels in [0, classes), bool of the rows that count or None for all): ignored labels become 0.

    Raises TypeError for labels that are no integers, IndexError for labels out of range where values are looked at; elsewhere they clamp.
    """
    if not labels.dtype.is_integer:
        raise TypeError(f"{name}: expected integer labels, got dtype {labels.dtype}; cast with .astype('int32')")
    seen = None if ignore is None else labels != ignore
    labels = labels if seen is None else where(seen, labels, 0)
    if checks_values(labels) and labels.size:
        low, high = smallest(labels).item(), largest(labels).item()
        if low < 0 or high >= classes:
            raise IndexError(f"{name}: expected labels in [0, {classes - 1}], got {low if low < 0 else high}; rows without a label are "
                             "left out with ignore=...")
        return labels, seen
    return clip(labels, 0, classes - 1), seen


def cross_entropy(logits: EmberTensor, labels: EmberTensor, ignore: int | None = None) -> EmberTensor:
    """-log softmax(logits)[label] in nats, one value per row.

    Args:
        logits: (..., classes), floating point.
        labels: (...), integers in [0, classes), or `ignore`, whose rows give 0 and no gradient.

    Returns: (...), in the dtype of logits.

    Raises ShapeError if labels do not have the leading shape of logits; TypeError, IndexError for labels as in `checked_labels`.
    """
    expect_tensors("cross_entropy", logits=logits, labels=labels)
    if labels.shape != logits.shape[:-1]:
        raise ShapeError(f"cross_entropy: expected labels of shape {logits.shape[:-1]} for logits of shape "
                         f"{logits.shape}, got {labels.shape}")
    labels, seen = checked_labels("cross_entropy", labels, logits.shape[-1], ignore)
    rows = cross_entropy_rows(logits, labels)
    return rows if seen is None else where(seen, rows, 0.0)
