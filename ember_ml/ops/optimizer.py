"""What an optimiser does to all parameters at once, as ops: an engine can fuse it, and the optimisers stay free of engines."""

from __future__ import annotations

import math

from ember_ml.ops.declare import op
from ember_ml.ops.elementwise import expm1, minimum, sqrt, square
from ember_ml.tensor.common import dtypes as dt

_WHY = "an optimiser's update is not differentiated"


@op(no_grad=_WHY)
def adam_update(rate, t, *tensors, beta1, beta2, eps, decays, donate=False):
    """One step of Adam with decoupled weight decay, for n parameters at once.

        m <- beta1 m + (1 - beta1) g            v <- beta2 v + (1 - beta2) g^2
        p <- p - rate (m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps) + decay p)

    rate, t: float32 scalars; t counts this step, from 1. tensors: n parameters, n gradients, n m, n v, equal shapes in
    equal places. decays: n numbers. donate: the tensors of p, m and v are not used afterwards, so that an engine may write the new
    ones in their place, where no other tensor shares it. Returns the n new p, then m, then v.
    """
    n = len(tensors) // 4
    ps, gs, ms, vs = (tensors[i * n:(i + 1) * n] for i in range(4))
    # 1 - beta^t without the cancellation that would cost 1 - 0.999 five digits in float32
    scale1, scale2 = (-1.0 / expm1(t * math.log(max(beta, 1e-300))) for beta in (beta1, beta2))
    ms = [m * beta1 + g * (1.0 - beta1) for m, g in zip(ms, gs)]
    vs = [v * beta2 + square(g) * (1.0 - beta2) for v, g in zip(vs, gs)]
    size, after = rate * scale1, []
    for p, m, v, decay in zip(ps, ms, vs, decays):
        step = m * size / (sqrt(v * scale2) + eps)
        after.append(p - (step + p * (rate * decay) if decay else step))
    return (*after, *ms, *vs)


@op(no_grad=_WHY)
def clip_norm(*gradients, limit):
    """g_i min(1, limit / (norm + 1e-12)) for each gradient, norm = sqrt(sum_i |g_i|^2), and then the norm, a scalar of float32 at least."""
    total = None
    for g in gradients:
        wide = g.astype(dt.promote(g.dtype, dt.float32))
        part = square(wide).sum() if g.dtype.kind != "complex" else (g * g.conj()).real().sum()
        total = part if total is None else total + part
    norm = sqrt(total)
    factor = minimum(limit / (norm + 1e-12), 1.0)
    return (*(g * factor.astype(g.dtype) for g in gradients), norm)
