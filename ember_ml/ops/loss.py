"""Cross-entropy over classes, as one op so that no engine keeps the whole softmax for the gradient twice."""

from __future__ import annotations

from ember_ml.errors import ShapeError
from ember_ml.ops.activation import softmax
from ember_ml.ops.declare import op
from ember_ml.ops.elementwise import where
from ember_ml.ops.index import gather_along, one_hot
from ember_ml.ops.reduce import logsumexp
from ember_ml.ops.shape import expand_dims, squeeze
from ember_ml.tensor import EmberTensor


def _cross_entropy_grad(g, _y, logits, labels):
    p = softmax(logits, axis=-1)
    return (p - one_hot(labels, logits.shape[-1], p.dtype)) * expand_dims(g, -1), None


@op(vjp=_cross_entropy_grad)
def cross_entropy_rows(logits, labels):
    """Native form of `cross_entropy`, one value a row; labels are in range."""
    picked = squeeze(gather_along(logits, expand_dims(labels, -1), axis=-1), -1)
    return logsumexp(logits, axis=-1) - picked


def cross_entropy(logits: EmberTensor, labels: EmberTensor, ignore: int | None = None) -> EmberTensor:
    """-log softmax(logits)[label] in nats, one value per row.

    Args:
        logits: (..., classes), floating point.
        labels: (...), integers in [0, classes), or `ignore`, whose rows give 0 and no gradient.

    Returns: (...), in the dtype of logits.

    Raises ShapeError if labels do not have the leading shape of logits.
    """
    if labels.shape != logits.shape[:-1]:
        raise ShapeError(f"cross_entropy: expected labels of shape {logits.shape[:-1]} for logits of shape "
                         f"{logits.shape}, got {labels.shape}")
    if ignore is None:
        return cross_entropy_rows(logits, labels)
    seen = labels != ignore
    return where(seen, cross_entropy_rows(logits, where(seen, labels, 0)), 0.0)
