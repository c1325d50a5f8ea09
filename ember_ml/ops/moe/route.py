"""The choice of experts by softmax, and the weights of the chosen, for tokens' logits."""

from __future__ import annotations

from ember_ml.errors import ShapeError, UnsupportedDtype
from ember_ml.kernels import MOE_CHOOSE, MOE_WEIGH, MOE_WEIGH_GRAD, NEVER
from ember_ml.ops.activation import softmax
from ember_ml.ops.declare import op
from ember_ml.ops.dispatch import CONSTANT, expect_tensors
from ember_ml.ops.elementwise import isfinite, where
from ember_ml.ops.index import checked_indices, gather_along, put_add_along_axis
from ember_ml.ops.reduce import sum as total
from ember_ml.ops.sort import topk_indices
from ember_ml.tensor import EmberTensor
from ember_ml.tensor.common import dtypes as dt


def _scores(z, valid):
    return where(valid, softmax(where(valid, z, NEVER), axis=-1), 0.0)


@op(public="softmax_choice", vjp=CONSTANT, kernel=MOE_CHOOSE)
def softmax_choice_rows(z, bias, *, k: int):
    """Native form of `softmax_choice`, for checked arguments."""
    valid = isfinite(z)
    return topk_indices(where(valid, softmax(where(valid, z, NEVER), axis=-1) + bias, NEVER), k=k)


def softmax_choice(z: EmberTensor, bias: EmberTensor, *, k: int) -> EmberTensor:
    """int32 (T, k): the experts of largest softmax(z) + bias, by falling value, ties to the lower index.

    Args: z: (T, E), float32 (float64): the logits. bias: (E,), floating point: what only the choice sees. k: 1 to E.

    An expert whose logit is not finite is out of the softmax, and chosen last.

    Raises ShapeError for shapes that do not fit and another k; UnsupportedDtype for other dtypes.
    """
    expect_tensors("softmax_choice", z=z, bias=bias)
    _check_logits("softmax_choice", z)
    if bias.shape != z.shape[1:]:
        raise ShapeError(f"softmax_choice: expected bias (E,) = {z.shape[1:]} for z (T, E) = {z.shape}, got {bias.shape}")
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= z.shape[1]:
        raise ShapeError(f"softmax_choice: expected a whole number k from 1 to E = {z.shape[1]}, got {k!r}")
    return softmax_choice_rows(z, bias.astype(z.dtype), k=k)


@op(kernel=MOE_WEIGH_GRAD)
def softmax_weights_grad(g, g_scores, ids, scores, *, normalize: bool, eps: float, scale: float):
    """d_z of `softmax_weights_rows` for the gradients g of its weights (T, k) and g_scores of its scores (T, E)."""
    chosen, d = gather_along(scores, ids, axis=-1), g * scale
    if normalize:
        share = 1.0 / (total(chosen, axis=-1, keepdims=True) + eps)
        d = (d - total(d * chosen, axis=-1, keepdims=True) * share) * share
    slopes = put_add_along_axis(g_scores, ids, d, axis=1)
    return scores * (slopes - total(scores * slopes, axis=-1, keepdims=True))


def _rule(g, out, _z, ids, *, normalize, eps, scale):
    return softmax_weights_grad(g[0], g[1], ids, out[1], normalize=normalize, eps=eps, scale=scale), None


@op(public="softmax_weights", vjp=_rule, owns_gradient=True, kernel=MOE_WEIGH)
def softmax_weights_rows(z, ids, *, normalize: bool, eps: float, scale: float):
    """Native form of `softmax_weights`, for checked arguments and ids int32 in [0, E - 1]."""
    scores = _scores(z, isfinite(z))
    weights = gather_along(scores, ids, axis=-1)
    if normalize:
        weights = weights / (total(weights, axis=-1, keepdims=True) + eps)
    return weights * scale if scale != 1.0 else weights, scores


def softmax_weights(z: EmberTensor, ids: EmberTensor, *, normalize: bool, eps: float, scale: float) -> tuple[EmberTensor, EmberTensor]:
    """(weights (T, k), scores (T, E)): s = softmax(z) over the finite logits, 0 for the others, and w_k = scale s_k for the experts
    ids of a token; with normalize divided by the sum of its s_k plus eps.

    Args: z: (T, E), float32 (float64): the logits. ids: (T, k), integers in [0, E): the experts of each token.

    Raises ShapeError for shapes that do not fit; UnsupportedDtype for other dtypes of z, UnsupportedOp for ids that are no integers;
    IndexError for ids out of range, where indices are checked (elsewhere they clamp).
    """
    expect_tensors("softmax_weights", z=z, ids=ids)
    _check_logits("softmax_weights", z)
    if ids.ndim != 2 or ids.shape[0] != z.shape[0] or z.shape[1] == 0:
        raise ShapeError(f"softmax_weights: expected ids (T, k) for z (T, E) with E >= 1, got {ids.shape} and {z.shape}")
    ids = checked_indices("softmax_weights", ids, z.shape[1]).astype(dt.int32)
    return softmax_weights_rows(z, ids, normalize=normalize, eps=eps, scale=scale)


def _check_logits(name: str, z: EmberTensor):
    if z.ndim != 2:
        raise ShapeError(f"{name}: expected z (T, E), a row of logits a token; got shape {z.shape}")
    if z.dtype not in (dt.float32, dt.float64):
        raise UnsupportedDtype(f"{name}: expected z in float32 or float64, got {z.dtype}; cast it with .astype('float32')")
