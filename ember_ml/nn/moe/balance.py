"""Keeping experts busy: losses, and the bias that needs none. The conventions are those of the papers named.

A balanced load has loss 1 here whatever k is, as in Switch and MegaBlocks; transformers' `load_balancing_loss_func` is k times as
large (k at balance).
"""

from __future__ import annotations

from ember_ml.autodiff import stop_gradient
from ember_ml.ops import logsumexp, maximum, mean, sign, square
from ember_ml.ops import sum as total
from ember_ml.tensor import EmberTensor


def switch_loss(scores: EmberTensor, load: EmberTensor) -> EmberTensor:
    """E sum_e f_e P_e: f_e the share of rows that expert e has, P_e its mean share of the scores. 1 at balance, up to E.

    Args: scores: (T, E), at least 0. load: (E,), rows of each expert, or their shares; no gradient flows through it.

    Source: Fedus et al. 2021, Switch Transformers, eq. 4-6 (k = 1); for k > 1 f counts all slots, as in MegaBlocks.
    """
    share = scores / maximum(total(scores, axis=-1, keepdims=True), 1e-20)
    mean_share = total(share, axis=0) / max(scores.shape[0], 1)
    rows = stop_gradient(load.astype(scores.dtype))
    return total(rows / maximum(total(rows), 1.0) * mean_share) * scores.shape[1]


def z_loss(z: EmberTensor) -> EmberTensor:
    """mean_t (logsumexp_e z_te)^2, which keeps logits small. z: (T, E). Source: Zoph et al. 2022, ST-MoE, eq. 5."""
    return total(square(logsumexp(z, axis=-1))) / max(z.shape[0], 1)


def cv_squared(x: EmberTensor) -> EmberTensor:
    """Squared coefficient of variation, var(x) / mean(x)^2, of a vector. Source: Shazeer et al. 2017, eq. 7 and 11."""
    average = mean(x)
    return mean(square(x - average)) / maximum(square(average), 1e-20)


def next_bias(bias: EmberTensor, load: EmberTensor, rate: float) -> EmberTensor:
    """b_e + rate * sign(mean(n) - n_e): the bias that is added to the scores for the choice alone.

    Args: bias: (E,). load: (E,), rows n of each expert in this update.

    Source: Wang et al. 2024, Auxiliary-Loss-Free Load Balancing, algorithm 1; DeepSeek-AI 2024, DeepSeek-V3, section 2.1.2.
    """
    rows = load.astype(bias.dtype)
    return bias + rate * sign(mean(rows) - rows)
