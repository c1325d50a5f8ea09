"""Stochastic gradient descent with momentum."""

from __future__ import annotations

from ember_ml.nn.optimizers.base import Optimizer, Params
from ember_ml.nn.optimizers.schedules import LearningRate, Schedule
from ember_ml.registry.config import Rate, config


@config
class SGDConfig:
    """rate: learning rate or a schedule. momentum: 0 for none. nesterov: look ahead. weight_decay: L2, on gradients."""

    rate: Schedule | LearningRate = 1e-2
    momentum: Rate = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0


class SGD(Optimizer):
    """m <- momentum m + g;  p <- p - rate m  (Nesterov: p <- p - rate (g + momentum m)).

    Source: Sutskever et al. 2013, On the importance of initialization and momentum, in the form that torch uses.
    """

    Config = SGDConfig

    def slots(self, params: Params) -> dict:
        return {"m": {k: p.zeros_like() for k, p in params.items()}} if self.config.momentum else {}

    def update(self, params, grads, state, donate=False):
        c, rate = self.config, self.rate(state["step"])
        after, momenta = {}, {}
        for name, p in params.items():
            g = grads[name] + p * c.weight_decay if c.weight_decay else grads[name]
            if c.momentum:
                momenta[name] = m = state["m"][name] * c.momentum + g
                g = g + m * c.momentum if c.nesterov else m
            after[name] = p - g * rate.astype(p.dtype)
        return after, {"step": state["step"] + 1, **({"m": momenta} if c.momentum else {})}
