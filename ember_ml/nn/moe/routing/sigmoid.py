"""The router of DeepSeek-V3: every expert has a score of its own, and experts may be chosen by group first."""

from __future__ import annotations

from ember_ml.errors import ConfigError
from ember_ml.nn.moe.routing.base import NEVER, Router, RouterConfig, Routing, routers
from ember_ml.ops import expand_dims, one_hot, repeat, reshape, sigmoid, take_along_axis, topk, where
from ember_ml.ops import sum as total
from ember_ml.registry import Size, config
from ember_ml.tensor import EmberTensor


@config
class SigmoidRouterConfig(RouterConfig):
    """groups: of experts, in order; topk_groups: how many of them a token may choose from. Other fields: RouterConfig."""

    groups: Size = 1
    topk_groups: Size = 1


@routers.register("sigmoid")
class SigmoidRouter(Router):
    """s = sigmoid(z); S = the k experts of largest s + b; w_e = scale s_e / (sum_S s + eps) with normalize, else scale s_e.

    With groups, a group's score is the sum of its two largest s + b; experts outside the topk_groups best are out of the
    choice (their s + b counts as minus infinity, so that a negative bias cannot bring them back).

    Source: DeepSeek-AI 2024, DeepSeek-V3, eq. 12-16; LFM2 has one group and eps = 1e-6.
    """

    Config = SigmoidRouterConfig

    def __init__(self, config: SigmoidRouterConfig, key: EmberTensor | None = None):
        super().__init__(config, key)
        c = config
        if c.num_experts % c.groups:
            raise ConfigError(f"router: expected groups to divide num_experts = {c.num_experts}, received {c.groups}")
        if c.topk_groups > c.groups:
            raise ConfigError(f"router: expected topk_groups of at most groups = {c.groups}, received {c.topk_groups}")
        if c.groups > 1 and c.k > c.topk_groups * (c.num_experts // c.groups):
            raise ConfigError(f"router: expected k of at most the experts of topk_groups = {c.topk_groups} groups, "
                              f"{c.topk_groups * (c.num_experts // c.groups)}; received {c.k}")

    def scores(self, z, valid):
        return where(valid, sigmoid(z), 0.0)

    def choose(self, scores: EmberTensor, valid: EmberTensor) -> Routing:
        c = self.config
        if c.groups == 1:
            return super().choose(scores, valid)
        choice = where(valid, scores + self.bias.astype(scores.dtype), NEVER)
        grouped = reshape(choice, (-1, c.groups, c.num_experts // c.groups))
        best, _ = topk(grouped, min(2, grouped.shape[2]))
        _, groups = topk(total(best, axis=-1), c.topk_groups)
        open_groups = total(one_hot(groups, c.groups), axis=1)
        is_open = reshape(repeat(expand_dims(open_groups, 2), grouped.shape[2], 2), choice.shape)
        _, ids = topk(where(is_open > 0.0, choice, float("-inf")), c.k)
        return Routing(ids, self._weigh(take_along_axis(scores, ids, axis=-1), c.k), self.complete)
