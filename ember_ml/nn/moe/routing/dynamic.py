"""Routers whose number of experts per token is not fixed: as many as the probability asks for, or as the experts choose."""

from __future__ import annotations

import math

from ember_ml.errors import ConfigError
from ember_ml.nn import scope
from ember_ml.nn.moe.insight import entropy
from ember_ml.nn.moe.routing.base import NEVER, Router, RouterConfig, Routing, routers
from ember_ml.ops import arange, cumsum, expand_dims, put_add_along_axis, softmax, swap_axes, take_along_axis, topk, where
from ember_ml.ops import sum as total
from ember_ml.registry import Size, config
from ember_ml.tensor import EmberTensor
from ember_ml.tensor.common import dtypes as dt


@config
class TopPRouterConfig(RouterConfig):
    """top_p: probability that the chosen experts must reach together. k: at most so many of them.
    entropy_loss: coefficient of the mean entropy of p (in nats), which keeps their number from growing."""

    top_p: float = 0.4
    entropy_loss: float = 0.0


@routers.register("top_p")
class TopPRouter(Router):
    """p = softmax(z); the smallest number of experts, by falling p, whose p sum to top_p or more, at most k; w_e = p_e, or
    over their sum with normalize.

    Slots that are not needed have no expert: they are not computed.

    Source: Huang et al. 2024, Harder Tasks Need More Experts: Dynamic Routing in MoE Models, eq. 3-6.
    """

    Config = TopPRouterConfig
    complete = False

    def __init__(self, config: TopPRouterConfig, key: EmberTensor | None = None):
        if not 0.0 < config.top_p <= 1.0:
            raise ConfigError(f"router: expected top_p above 0 and at most 1, received {config.top_p}")
        super().__init__(config, key)

    def scores(self, z, valid):
        return where(valid, softmax(z, axis=-1), 0.0)

    def choose(self, scores: EmberTensor, valid: EmberTensor) -> Routing:
        c = self.config
        _, ids = topk(where(valid, scores + self.bias.astype(scores.dtype), NEVER), c.k)
        p = take_along_axis(scores, ids, axis=-1)
        needed = cumsum(p, axis=1) - p < c.top_p                # what came before did not reach it
        weights = self._weigh(where(needed, p, 0.0), c.k)
        return Routing(where(needed, ids, c.num_experts), weights, False)

    def report(self, z, scores, routing):
        super().report(z, scores, routing)
        if scope.current() is not None:
            chosen = (routing.ids < self.config.num_experts).astype(dt.float32)
            scope.add_metric("experts_per_token", total(chosen) / max(routing.ids.shape[0], 1), self)
            if self.config.entropy_loss:
                scope.add_loss("moe_entropy", self.config.entropy_loss * entropy(scores, unit=1.0))


@config
class ExpertChoiceRouterConfig(RouterConfig):
    """k: experts per token on average: each expert takes the ceil(T k / E) tokens it scores best. Other fields: RouterConfig."""

    balance_rate: float = 0.0
    normalize: bool | None = False


@routers.register("expert_choice")
class ExpertChoiceRouter(Router):
    """p = softmax(z) over experts; each expert takes its c = ceil(T k / E) tokens of largest p (ties to the earlier token);
    w_te = p_te.

    The load is balanced by construction; a token may get all experts or none. A token's experts depend on the tokens
    after it, so this router is for encoders and for training with that in mind, not for step-by-step decoding.

    Source: Zhou et al. 2022, Mixture-of-Experts with Expert Choice Routing, section 3.2.
    """

    Config = ExpertChoiceRouterConfig
    complete = False

    @property
    def slots(self) -> int:
        """One for each expert, since a token may be chosen by all."""
        return self.config.num_experts

    def scores(self, z, valid):
        return where(valid, softmax(z, axis=-1), 0.0)

    def choose(self, scores: EmberTensor, valid: EmberTensor) -> Routing:
        c, tokens = self.config, scores.shape[0]
        if tokens == 0:
            return Routing(scores.zeros_like().astype(dt.int32), scores, False)
        take = min(math.ceil(tokens * c.k / c.num_experts), tokens)
        _, picked = topk(where(swap_axes(valid), swap_axes(scores), NEVER), take)               # (E, c): tokens of each expert
        ones = scores.zeros_like()[:take, :] + 1.0
        chosen = put_add_along_axis(scores.zeros_like(), swap_axes(picked), ones, axis=0) > 0.0
        experts = expand_dims(arange(c.num_experts, like=picked), 0) + picked.zeros_like()[:1, :1]
        ids = where(chosen, experts, c.num_experts)
        return Routing(ids, self._weigh(where(chosen, scores, 0.0), c.num_experts), False)
