"""The router that learns nothing: experts share out the positions of a sequence."""

from __future__ import annotations

from typing import Literal

from ember_ml.errors import ConfigError, ShapeError
from ember_ml.nn import scope
from ember_ml.nn.module import Module
from ember_ml.nn.moe import insight
from ember_ml.nn.moe.routing.base import Routing, routers
from ember_ml.ops import expand_dims, minimum, one_hot, zeros
from ember_ml.registry import Size, config
from ember_ml.tensor import EmberTensor


@config
class PositionRouterConfig:
    """d_input: channels (unused). num_experts: E. scheme: "blocks": expert floor(t E / length) at position t, later positions
    the last one; "cyclic": expert t mod E. length: of the sequences, for blocks. k: must be 1."""

    d_input: Size
    num_experts: Size
    scheme: Literal["blocks", "cyclic"] = "blocks"
    length: Size | None = None
    k: Size = 1


@routers.register("position")
class PositionRouter(Module):
    """One expert per token, by its position in the sequence, with weight 1: disjoint subsets of the input."""

    Config = PositionRouterConfig
    complete, slots = True, 1
    cannot_pack = "its experts share out the positions of the row"

    def __init__(self, config: PositionRouterConfig, key: EmberTensor | None = None):
        if config.k != 1:
            raise ConfigError(f"router: expected k = 1, since a position has one expert; received {config.k}")
        if config.scheme == "blocks" and config.length is None:
            raise ConfigError("router: expected length, the sequences' length, for scheme 'blocks'; received none")
        self.config = config

    def forward(self, x: EmberTensor, positions: EmberTensor | None = None) -> Routing:
        """The experts of tokens x (T, d_input) at positions (T,). Raises ShapeError without positions."""
        c = self.config
        if positions is None:
            raise ShapeError("position router: expected input (B, L, channels), whose positions are known; got single tokens")
        blocks = c.scheme == "blocks"
        ids = minimum(positions * c.num_experts // c.length, c.num_experts - 1) if blocks else positions % c.num_experts
        ids = expand_dims(ids, 1)
        weights = zeros(ids.shape, like=ids) + 1.0
        routing = Routing(ids, weights)
        if scope.current() is not None:
            load = insight.load(ids, c.num_experts)
            insight.report(self, one_hot(ids[:, 0], c.num_experts), load, insight.share(load), routing)
        return routing

    def mixture(self, x: EmberTensor, positions: EmberTensor | None = None) -> EmberTensor:
        """(T, E): 1 at the expert of the position."""
        return one_hot(self.forward(x, positions).ids[:, 0], self.config.num_experts)
