"""The choice of experts by softmax, and the weights of the chosen, for tokens' logits."""

from __future__ import annotations

from ember_ml.kernels import MOE_CHOOSE, MOE_WEIGH, MOE_WEIGH_GRAD, NEVER
from ember_ml.ops.activation import softmax
from ember_ml.ops.declare import op
from ember_ml.ops.dispatch import CONSTANT
from ember_ml.ops.elementwise import isfinite, where
from ember_ml.ops.index import gather_along, put_add_along_axis
from ember_ml.ops.reduce import sum as total
from ember_ml.ops.sort import topk_indices


def _scores(z, valid):
    return where(valid, softmax(where(valid, z, NEVER), axis=-1), 0.0)


@op(vjp=CONSTANT, kernel=MOE_CHOOSE)
def softmax_choice(z, bias, *, k: int):
    """int32 (T, k): the experts of largest softmax(z) + bias, by falling value, ties to the lower index.

    z (T, E) and bias (E,) are float32 (float64). An expert whose logit is not finite is out of the softmax, and chosen last.
    """
    valid = isfinite(z)
    return topk_indices(where(valid, softmax(where(valid, z, NEVER), axis=-1) + bias, NEVER), k=k)


@op(kernel=MOE_WEIGH_GRAD)
def softmax_weights_grad(g, g_scores, ids, scores, *, normalize: bool, eps: float, scale: float):
    """d_z of `softmax_weights` for the gradients g of its weights (T, k) and g_scores of its scores (T, E)."""
    chosen, d = gather_along(scores, ids, axis=-1), g * scale
    if normalize:
        share = 1.0 / (total(chosen, axis=-1, keepdims=True) + eps)
        d = (d - total(d * chosen, axis=-1, keepdims=True) * share) * share
    slopes = put_add_along_axis(g_scores, ids, d, axis=1)
    return scores * (slopes - total(scores * slopes, axis=-1, keepdims=True))


def _rule(g, out, _z, ids, *, normalize, eps, scale):
    return softmax_weights_grad(g[0], g[1], ids, out[1], normalize=normalize, eps=eps, scale=scale), None


@op(vjp=_rule, owns_gradient=True, kernel=MOE_WEIGH)
def softmax_weights(z, ids, *, normalize: bool, eps: float, scale: float):
    """(weights (T, k), scores (T, E)): s = softmax(z) over the finite logits, 0 for the others, and w_k = scale s_k for the experts
    ids (T, k) of a token, which are distinct; with normalize divided by the sum of its s_k plus eps.
    """
    scores = _scores(z, isfinite(z))
    weights = gather_along(scores, ids, axis=-1)
    if normalize:
        weights = weights / (total(weights, axis=-1, keepdims=True) + eps)
    return weights * scale if scale != 1.0 else weights, scores
