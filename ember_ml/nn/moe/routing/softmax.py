"""Routers by softmax: plain, and with noise on the logits."""

from __future__ import annotations

from ember_ml.nn import scope
from ember_ml.nn.moe import balance
from ember_ml.nn.moe.routing.base import NEVER, Router, RouterConfig, Routing, routers
from ember_ml.autodiff import stop_gradient
from ember_ml.ops import isfinite, linear, put_add_along_axis, random, softmax, softplus, topk, where, zeros
from ember_ml.ops import sum as total
from ember_ml.ops.moe.route import softmax_choice, softmax_weights_rows
from ember_ml.registry import config
from ember_ml.tensor import EmberTensor


@config
class SoftmaxRouterConfig(RouterConfig):
    """Fields of RouterConfig; normalize=True is Mixtral's weights, False Switch's and OLMoE's."""


@routers.register("softmax")
class SoftmaxRouter(Router):
    """p = softmax(z) over all experts; S = the k experts of largest p + b; w_e = p_e, or p_e / sum_S p with normalize.

    The normalised weights equal a softmax over the chosen logits alone.

    Source: Fedus et al. 2021, Switch Transformers, eq. 1-2; Jiang et al. 2024, Mixtral of Experts, section 2.1.
    """

    Config = SoftmaxRouterConfig

    def scores(self, z, valid):
        return where(valid, softmax(z, axis=-1), 0.0)

    def route(self, x: EmberTensor):
        """As the rule above, in two ops that have kernels."""
        c, z = self.config, self.raw_logits(x)
        ids = softmax_choice(stop_gradient(z), stop_gradient(self.bias), k=c.k)          # in range, as the native form wants them
        weights, scores = softmax_weights_rows(z, ids, normalize=self._normalizes(c.k), eps=c.eps, scale=c.scale)
        if scope.current() is not None and c.z_loss:
            z = where(isfinite(z), z, NEVER)
        return z, scores, Routing(ids, weights, self.complete)


@routers.register("masked_softmax")
class MaskedSoftmaxRouter(Router):
    """w = softmax(z') over all experts, z'_e = z_e for the k largest and 0 for the others, which so keep the weight of a zero.

    MAD-Lab's rule: every expert works on every token, and an inactive one may outweigh an active one of negative score. For
    models that were trained with it; ties keep more than k.

    Source: Poli et al. 2024, Mechanistic Design and Scaling of Hybrid Architectures (MAD), its published layers.
    """

    Config = SoftmaxRouterConfig

    @property
    def slots(self) -> int:
        """All experts."""
        return self.config.num_experts

    def scores(self, z, valid):
        kept, _ = topk(z, self.config.k)
        return softmax(where(z >= kept[:, self.config.k - 1:], z, 0.0), axis=-1)

    def mixture(self, x: EmberTensor) -> EmberTensor:
        return self.scores(*self.logits(x))

    def choose(self, scores: EmberTensor, valid: EmberTensor) -> Routing:
        weights, ids = topk(scores, self.config.num_experts)
        return Routing(ids, weights)


@config
class NoisyTopKRouterConfig(RouterConfig):
    """importance_loss: coefficient of CV(sum_t w_te)^2. Other fields: RouterConfig."""

    balance_rate: float = 0.0
    importance_loss: float = 0.0


@routers.register("noisy_topk")
class NoisyTopKRouter(Router):
    """h = z + n softplus(W_noise x) with n normal, in training only; S = the k largest h + b; w = softmax of h over S.

    Parameters: as Router, and noise_weight (E, d_input), zero at first.

    Source: Shazeer et al. 2017, Outrageously Large Neural Networks, eq. 3-5; the importance loss is their eq. 6-7.
    """

    Config = NoisyTopKRouterConfig

    def __init__(self, config: NoisyTopKRouterConfig, key: EmberTensor | None = None):
        super().__init__(config, key)
        self.noise_weight = zeros((config.num_experts, config.d_input))

    def scores(self, z, valid):
        return where(valid, softmax(z, axis=-1), 0.0)

    def forward(self, x: EmberTensor, positions: EmberTensor | None = None) -> Routing:
        """The experts of tokens x (T, d_input)."""
        z, valid = self.logits(x)
        here = scope.current()
        if here is not None and here.key is not None:
            spread = softplus(linear(x.astype(z.dtype), self.noise_weight.astype(z.dtype)))
            z = where(valid, z + random.normal(scope.next_key(), z.shape).astype(z.dtype) * spread, NEVER)
        scores = self.scores(z, valid)
        routing = self.choose(scores, valid)
        if here is not None and self.config.importance_loss:
            dense = _spread(routing, z)
            scope.add_loss("moe_importance", self.config.importance_loss * balance.cv_squared(total(dense, axis=0)))
        self.report(z, scores, routing)
        return routing


def _spread(routing: Routing, like: EmberTensor) -> EmberTensor:
    """(T, E): the weights at the places of their experts."""
    return put_add_along_axis(like.zeros_like(), routing.ids, routing.weights, axis=1)
