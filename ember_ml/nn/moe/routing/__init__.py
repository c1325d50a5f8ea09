"""Routers: which experts work on a token, and with what weight. Importing this registers them all."""

from ember_ml.nn.moe.routing.base import Router, RouterConfig, Routing, routers
from ember_ml.nn.moe.routing.dynamic import ExpertChoiceRouter, ExpertChoiceRouterConfig, TopPRouter, TopPRouterConfig
from ember_ml.nn.moe.routing.position import PositionRouter, PositionRouterConfig
from ember_ml.nn.moe.routing.sigmoid import SigmoidRouter, SigmoidRouterConfig
from ember_ml.nn.moe.routing.softmax import (
    MaskedSoftmaxRouter, NoisyTopKRouter, NoisyTopKRouterConfig, SoftmaxRouter, SoftmaxRouterConfig,
)

#: the architecture document's name for the router that gives each token its k experts
TopKRouter, TopKRouterConfig = SoftmaxRouter, SoftmaxRouterConfig

__all__ = ["ExpertChoiceRouter", "ExpertChoiceRouterConfig", "MaskedSoftmaxRouter", "NoisyTopKRouter", "NoisyTopKRouterConfig", "PositionRouter",
           "PositionRouterConfig", "Router", "RouterConfig", "Routing", "SigmoidRouter", "SigmoidRouterConfig", "SoftmaxRouter",
           "SoftmaxRouterConfig", "TopKRouter", "TopKRouterConfig", "TopPRouter", "TopPRouterConfig", "routers"]
