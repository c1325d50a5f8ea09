"""Routers: which experts work on a token, and with what weight."""

from ember_ml.nn.moe.routing.softmax import Routing, SoftmaxRouter, SoftmaxRouterConfig

__all__ = ["Routing", "SoftmaxRouter", "SoftmaxRouterConfig"]
