"""Block: a layer with its norm, its dropout and its residual, all by registered names."""

from __future__ import annotations

import dataclasses
from typing import Any

import pydantic
from pydantic_core import ArgsKwargs

from ember_ml.errors import ConfigError
from ember_ml.nn.layers.dropout import dropout
from ember_ml.nn.module import Module
from ember_ml.ops import random
from ember_ml.registry import Rate, Size, config, layers
from ember_ml.tensor import EmberTensor


@config
class BlockConfig:
    """One block.

    Args:
        d_input: channels.
        layer: registered name. layer_config: its fields without d_input, as a dict or a ready config;
            `<layer>_config` is another spelling.
        residual: registered name of the connection, None for x + y. residual_config: its fields without d_input.
        norm: registered name, None for none. prenorm: before the layer, else after the residual.
        pool: registered name of what follows, None for nothing.
        dropout: on the layer's output.
    """

    d_input: Size
    layer: str | None = None
    layer_config: Any = dataclasses.field(default_factory=dict)
    residual: str | None = None
    residual_config: dict = dataclasses.field(default_factory=dict)
    norm: str | None = None
    pool: str | None = None
    prenorm: bool = True
    dropout: Rate = 0.0

    @pydantic.model_validator(mode="before")
    @classmethod
    def _spelling(cls, values):
        fields = values.kwargs if isinstance(values, ArgsKwargs) else values      # called, or a dict within a config
        if not isinstance(fields, dict) or f"{fields.get('layer')}_config" not in fields or "layer_config" in fields:
            return values
        fields = dict(fields)
        fields["layer_config"] = fields.pop(f"{fields['layer']}_config")
        return ArgsKwargs(values.args, fields) if isinstance(values, ArgsKwargs) else fields


class Block(Module):
    """y = residual(x, dropout(layer(norm(x)))), or with the norm after the residual.

    Args:
        config: a BlockConfig; or give its fields: `Block(d_input, layer="hyena", norm="layer_norm", ...)`.
        key: random key of the initial weights.

    forward and step return (y, state); the state is the layer's, None for channel mixers.
    """

    Config = BlockConfig

    def __init__(self, config: BlockConfig | int, key: EmberTensor | None = None, **fields):
        self.config = c = config if isinstance(config, BlockConfig) else BlockConfig(d_input=config, **fields)
        keys = random.split(key if key is not None else random.next_key(), 4)
        self.norm = layers.instantiate(c.norm, c.d_input, key=keys[1]) if c.norm else None
        self.layer = _layer(c, keys[0]) if c.layer else None
        self.residual = None
        if c.residual:
            self.residual = layers.instantiate(c.residual, c.d_input, key=keys[2], **c.residual_config)
        self.pool = layers.instantiate(c.pool, c.d_input, key=keys[3]) if c.pool else None

    def forward(self, x: EmberTensor, state=None) -> tuple[EmberTensor, Any]:
        """(B, L, d_input) to the same shape (the pool may shorten it)."""
        return self._run(x, state, "forward")

    def step(self, x: EmberTensor, state=None) -> tuple[EmberTensor, Any]:
        """One position, (B, d_input)."""
        return self._run(x, state, "step")

    def initial_state(self, batch: int, dtype="float32"):
        """The layer's state before the first position, None for channel mixers."""
        return self.layer.initial_state(batch, dtype) if getattr(self.layer, "mixes_sequence", False) else None

    def _run(self, x, state, form: str):
        y = self.norm(x) if self.norm and self.config.prenorm else x
        if self.layer is not None:
            out = getattr(self.layer, form)(y, state) if self.layer.mixes_sequence else getattr(self.layer, form)(y)
            y, state = out if self.layer.mixes_sequence else (out, None)
            y = dropout(y, self.config.dropout)
            y = self.residual(x, y) if self.residual else x + y
        if self.norm and not self.config.prenorm:
            y = self.norm(y)
        return (self.pool(y) if self.pool else y), state


def _layer(c: BlockConfig, key):
    ready = c.layer_config
    if isinstance(ready, dict):
        if "d_input" in ready:
            raise ConfigError(f"block: expected {c.layer}'s config without d_input, which is the block's, {c.d_input}; "
                              f"received {ready['d_input']}")
        made = layers.instantiate(c.layer, d_input=c.d_input, key=key, **ready)
        if not hasattr(made, "mixes_sequence"):
            raise ConfigError(f"block: expected a channel or sequence mixer as layer; received {c.layer!r}")
        return made
    if getattr(ready, "d_input", None) != c.d_input:
        raise ConfigError(f"block: expected {c.layer}'s d_input to be the block's, {c.d_input}; received {ready!r}")
    return layers.instantiate(c.layer, ready, key=key)
