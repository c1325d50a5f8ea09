"""The softmax router with top-k selection, balanced by a selection bias instead of an auxiliary loss."""

from __future__ import annotations

from typing import NamedTuple

from ember_ml.errors import ConfigError
from ember_ml.nn import initializers, scope
from ember_ml.nn.module import Module
from ember_ml.ops import (
    argmax, isfinite, linear, logical_not, maximum, one_hot, random, sign, softmax, sqrt, square, take_along_axis, topk,
    where, zeros,
)
from ember_ml.ops.index import checks_values
from ember_ml.registry import Size, config
from ember_ml.tensor import EmberTensor
from ember_ml.tensor.common import dtypes as dt

#: a logit that stands in for one that is not finite: its probability is 0, and it stays finite itself
_NEVER = -1e30


class Routing(NamedTuple):
    """ids: (T, K) int32, experts of each token by falling score, ties to the lower index. weights: (T, K) float32."""

    ids: EmberTensor
    weights: EmberTensor


@config
class SoftmaxRouterConfig:
    """d_input: channels. num_experts: E. k: experts per token. balance_rate: step of the selection bias, 0 for none."""

    d_input: Size
    num_experts: Size
    k: Size = 2
    balance_rate: float = 1e-3


class SoftmaxRouter(Module):
    """Experts by probability, and a bias that steers the choice towards the idle ones.

        p = softmax(W x)                          in float32, whatever x is
        S = the k experts of largest p + b        ties to the lower index
        w_e = p_e / sum_{j in S} p_j              for k > 1
        w_e = p_e                                 for k = 1, where the quotient would be 1 and train nothing

    After each training step, with n_e the number of tokens of expert e: b_e <- b_e + rate * sign(mean(n) - n_e).
    The bias chooses and does not weigh, so balancing puts no gradient of its own into the model.

    An expert whose logit is not finite is never chosen: NumPy and `em.debug_checks` raise; elsewhere a slot that is
    left without an expert has weight 0.

    Args:
        config: see SoftmaxRouterConfig. key: random key of the initial weights, uniform in +-1/sqrt(d_input).

    Parameters: weight (E, d_input). Buffers: bias (E,), float32.
    Metrics: load_cv, the standard deviation of n over its mean (0 when balanced, sqrt(E - 1) when one expert has all).

    Source: Wang et al. 2024, Auxiliary-Loss-Free Load Balancing Strategy for Mixture-of-Experts, algorithm 1;
    DeepSeek-AI 2024, DeepSeek-V3 Technical Report, section 2.1.2.
    """

    Config = SoftmaxRouterConfig

    def __init__(self, config: SoftmaxRouterConfig, key: EmberTensor | None = None):
        if config.k > config.num_experts:
            raise ConfigError(f"router: expected k of at most num_experts = {config.num_experts}, received {config.k}")
        self.config = config
        key = key if key is not None else random.next_key()
        self.weight = initializers.fan_in_uniform(key, (config.num_experts, config.d_input))
        self.buffer("bias", zeros((config.num_experts,)))

    def probabilities(self, x: EmberTensor) -> tuple[EmberTensor, EmberTensor]:
        """(p, valid) of tokens x (T, d_input): p (T, E) float32, 0 where the logit is not finite; valid (T, E) bool.

        Raises FloatingPointError for such logits on NumPy and under `em.debug_checks`, naming the first.
        """
        wide = dt.promote(x.dtype, dt.float32)
        z = linear(x.astype(wide), self.weight.astype(wide))
        valid = isfinite(z)
        if checks_values(z) and not valid.all().item():
            token, expert = divmod(argmax(logical_not(valid).astype(dt.int32)).item(), self.config.num_experts)
            raise FloatingPointError(f"router: expected finite logits, got {z[token, expert].item()} for token "
                                     f"{token}, expert {expert}; look for an overflow before this layer")
        return where(valid, softmax(where(valid, z, _NEVER), axis=-1), 0.0), valid

    def forward(self, x: EmberTensor) -> Routing:
        """The experts of tokens x (T, d_input)."""
        c = self.config
        p, valid = self.probabilities(x)
        _, ids = topk(where(valid, p + self.bias, _NEVER), c.k)
        weights = take_along_axis(p, ids, axis=-1)
        if c.k > 1:
            weights = weights / (weights.sum(axis=-1, keepdims=True) + 1e-20)   # all 0 where no logit was finite
        if scope.current() is not None:
            self._balance(one_hot(ids, c.num_experts), valid)
        return Routing(ids, weights)

    def _balance(self, chosen: EmberTensor, valid: EmberTensor):
        """Reports the load and moves the bias. chosen: (T, K, E), 1 where a slot has the expert."""
        load = (chosen.sum(axis=1) * valid.astype(dt.float32)).sum(axis=0)
        mean = load.mean()
        scope.add_metric("load_cv", sqrt(square(load - mean).mean()) / maximum(mean, 1e-20), self)
        if self.config.balance_rate:
            scope.update_buffer(self, "bias", self.bias + self.config.balance_rate * sign(mean - load))
