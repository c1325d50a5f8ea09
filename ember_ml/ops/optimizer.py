"""One update of one parameter, as an op: an engine can fuse it, and the optimisers stay free of engines."""

from __future__ import annotations

from ember_ml.ops.declare import op
from ember_ml.ops.elementwise import sqrt, square

_WHY = "an optimiser's update is not differentiated"


@op(no_grad=_WHY)
def adam_update(p, g, m, v, size, scale2, shrink=None, *, beta1, beta2, eps):
    """(p, m, v) after one step of Adam with decoupled weight decay.

        m <- beta1 m + (1 - beta1) g            v <- beta2 v + (1 - beta2) g^2
        p <- p - size m / (sqrt(v scale2) + eps) - shrink p

    p, g, m, v: one shape. size = rate / (1 - beta1^t), scale2 = 1 / (1 - beta2^t), shrink = rate * decay or None: scalar tensors.
    """
    m = m * beta1 + g * (1.0 - beta1)
    v = v * beta2 + square(g) * (1.0 - beta2)
    step = m * size / (sqrt(v * scale2) + eps)
    return p - (step if shrink is None else step + p * shrink), m, v
