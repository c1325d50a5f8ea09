"""What routers have in common: logits in float32, the choice of experts, balance and what is reported of it."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from ember_ml.errors import ConfigError
from ember_ml.nn import initializers, scope
from ember_ml.nn.module import Module
from ember_ml.nn.moe import balance, insight
from ember_ml.nn.moe.routing.capacity import keep_within_capacity
from ember_ml.ops import argmax, isfinite, linear, logical_not, random, where, zeros
from ember_ml.ops.index import checks_values, gather_along
from ember_ml.ops.moe.route import NEVER
from ember_ml.ops.sort import topk_indices
from ember_ml.registry import Registry, Size, config
from ember_ml.tensor import EmberTensor
from ember_ml.tensor.common import dtypes as dt

#: routers by name
routers = Registry("router", "ember_ml.nn.moe.routing")


class Routing(NamedTuple):
    """Who works on which token.

    ids: (T, K), int32: experts of each token, by falling score, ties to the lower index; E stands for no expert.
    weights: (T, K), float32: of each expert's output, 0 where there is none.
    complete: whether every slot has an expert, known before anything is computed.
    """

    ids: EmberTensor
    weights: EmberTensor
    complete: bool = True


@config
class RouterConfig:
    """Fields of every router that learns.

    Args:
        d_input: channels. num_experts: E. k: experts per token.
        linear_bias: add a bias to the logits.
        normalize: divide the chosen experts' weights by their sum; None for k > 1 (with k = 1 the quotient would be 1, and the
            router would learn nothing from the task).
        eps: added to that sum. scale: of the weights, after everything else.
        balance_rate: step of the selection bias towards idle experts after each update, 0 for none.
        aux_loss: coefficient of the Switch balance loss (1 at balance). z_loss: of the router z-loss.
        capacity_factor: experts take at most ceil(factor * T K / E) rows, None for as many as come.
        drop: who is dropped beyond that: "position": later slots first, then later tokens (GShard); "score": smaller
            weights first (batch-prioritised, Riquelme et al. 2021). A dropped slot has weight 0; others keep theirs.
    """

    d_input: Size
    num_experts: Size
    k: Size = 2
    linear_bias: bool = False
    normalize: bool | None = None
    eps: float = 1e-20
    scale: float = 1.0
    balance_rate: float = 1e-3
    aux_loss: float = 0.0
    z_loss: float = 0.0
    capacity_factor: float | None = None
    drop: Literal["position", "score"] = "position"


class Router(Module):
    """z = W x (+ c), in float32 whatever x is; subclasses say how scores come of it, and which experts are chosen.

    An expert whose logit is not finite is never chosen: NumPy and `em.debug_checks` raise; elsewhere a slot that is left without
    an expert has weight 0.

    Parameters: weight (E, d_input), uniform in +-1/sqrt(d_input) at first; linear_bias (E,) if asked for. Buffers: bias (E,),
    float32, which is added for the choice and does not weigh (Wang et al. 2024, algorithm 1).

    In training it adds `moe_aux` and `moe_z` to the loss, as configured, and reports what `insight.report` lists.
    """

    Config = RouterConfig
    #: whether every slot gets an expert
    complete = True

    def __init__(self, config: RouterConfig, key: EmberTensor | None = None):
        if config.k > config.num_experts:
            raise ConfigError(f"router: expected k of at most num_experts = {config.num_experts}, received {config.k}")
        if config.capacity_factor is not None and config.capacity_factor <= 0.0:
            raise ConfigError(f"router: expected capacity_factor above 0, received {config.capacity_factor}; None is without limit")
        for name in ("balance_rate", "aux_loss", "z_loss", "importance_loss", "entropy_loss"):
            if (value := getattr(config, name, 0.0)) < 0.0:
                raise ConfigError(f"router: expected {name} of at least 0, received {value}")
        self.config = config
        key = key if key is not None else random.next_key()
        self.weight = initializers.fan_in_uniform(key, (config.num_experts, config.d_input))
        self.linear_bias = zeros((config.num_experts,)) if config.linear_bias else None
        self.buffer("bias", zeros((config.num_experts,)))

    @property
    def slots(self) -> int:
        """K of its routings."""
        return self.config.k

    def raw_logits(self, x: EmberTensor) -> EmberTensor:
        """z (T, E), float32, of tokens x (T, d_input).

        Raises FloatingPointError for logits that are not finite on NumPy and under `em.debug_checks`, naming the first.
        """
        wide = dt.promote(x.dtype, dt.float32)
        z = linear(x.astype(wide), self.weight.astype(wide))
        z = z if self.linear_bias is None else z + self.linear_bias.astype(wide)
        if checks_values(z) and not (valid := isfinite(z)).all().item():
            token, expert = divmod(argmax(logical_not(valid).astype(dt.int32)).item(), self.config.num_experts)
            raise FloatingPointError(f"router: expected finite logits, got {z[token, expert].item()} for token "
                                     f"{token}, expert {expert}; look for an overflow before this layer")
        return z

    def logits(self, x: EmberTensor) -> tuple[EmberTensor, EmberTensor]:
        """(z, valid) of tokens x (T, d_input): z (T, E) float32, NEVER where it is not finite; valid (T, E) bool."""
        z = self.raw_logits(x)
        valid = isfinite(z)
        return where(valid, z, NEVER), valid

    def scores(self, z: EmberTensor, valid: EmberTensor) -> EmberTensor:
        """(T, E): what experts are chosen and weighed by, at least 0, 0 where not valid."""
        raise NotImplementedError

    def mixture(self, x: EmberTensor) -> EmberTensor:
        """(T, E): weights of all experts, for a dense mixture."""
        return self._weigh(self.scores(*self.logits(x)), self.config.num_experts)

    def forward(self, x: EmberTensor, positions: EmberTensor | None = None) -> Routing:
        """The experts of tokens x (T, d_input)."""
        z, scores, routing = self.route(x)
        c = self.config
        if c.capacity_factor is not None:
            routing = Routing(*keep_within_capacity(routing.ids, routing.weights, c.num_experts, c.capacity_factor, c.drop), False)
        self.report(z, scores, routing)
        return routing

    def route(self, x: EmberTensor) -> tuple[EmberTensor, EmberTensor, Routing]:
        """(logits, scores, who works on which token), both (T, E), before capacity is looked at."""
        z, valid = self.logits(x)
        scores = self.scores(z, valid)
        return z, scores, self.choose(scores, valid)

    def choose(self, scores: EmberTensor, valid: EmberTensor) -> Routing:
        """The k experts of largest score plus bias, weighed by score alone."""
        ids = topk_indices(where(valid, scores + self.bias.astype(scores.dtype), NEVER), k=self.config.k)
        return Routing(ids, self._weigh(gather_along(scores, ids, axis=-1), self.config.k), self.complete)

    def report(self, z: EmberTensor, scores: EmberTensor, routing: Routing):
        """Losses, metrics and the next bias, where a training scope is open."""
        if scope.current() is None:
            return
        c = self.config
        load = insight.load(routing.ids, c.num_experts, routing.weights)
        share = insight.share(load)                        # once: mx.compile cannot merge an output with its equal in a gradient (0.32)
        if c.aux_loss:
            scope.add_loss("moe_aux", c.aux_loss * balance.switch_loss(scores, share))
        if c.z_loss:
            scope.add_loss("moe_z", c.z_loss * balance.z_loss(z))
        if c.balance_rate:
            scope.update_buffer(self, "bias", balance.next_bias(self.bias, load, c.balance_rate))
        insight.report(self, scores, load, share, routing)

    def _weigh(self, weights: EmberTensor, slots: int) -> EmberTensor:
        c = self.config
        if self._normalizes(slots):
            weights = weights / (weights.sum(axis=-1, keepdims=True) + c.eps)       # all 0 where no logit was finite
        return weights * c.scale if c.scale != 1.0 else weights

    def _normalizes(self, slots: int) -> bool:
        return self.config.normalize or (self.config.normalize is None and slots > 1)
