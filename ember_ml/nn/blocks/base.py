"""Block: a layer with its norm, its dropout and its residual, all by registered names."""

from __future__ import annotations

import dataclasses
import inspect
from contextlib import nullcontext
from typing import Any

import pydantic
from pydantic_core import ArgsKwargs

from ember_ml.backend import using
from ember_ml.errors import ConfigError
from ember_ml.nn.layers.dropout import dropout
from ember_ml.nn.layers.pool import Pool
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
        norm: registered name, None for none. norm_config: its fields without d_input.
        pool: registered name of what follows, None for nothing. pool_config: its fields without d_input.
        prenorm: norm before the layer, else after the residual.
        dropout: on the layer's output.

    """

    d_input: Size
    layer: str | None = None
    layer_config: Any = dataclasses.field(default_factory=dict)
    residual: str | None = None
    residual_config: dict = dataclasses.field(default_factory=dict)
    norm: str | None = None
    norm_config: dict = dataclasses.field(default_factory=dict)
    pool: str | None = None
    pool_config: dict = dataclasses.field(default_factory=dict)
    prenorm: bool = True
    dropout: Rate = 0.0

    @pydantic.model_validator(mode="before")
    @classmethod
    def _spelling(cls, values):
        fields = values.kwargs if isinstance(values, ArgsKwargs) else values      # called, or a dict within a config
        named = fields.get("layer") if isinstance(fields, dict) else None
        if not isinstance(named, str) or f"{named}_config" not in fields or "layer_config" in fields:
            return values
        fields = dict(fields)
        fields["layer_config"] = fields.pop(f"{named}_config")
        return ArgsKwargs(values.args, fields) if isinstance(values, ArgsKwargs) else fields


_KINDS = {"norm": "a norm, such as 'rms_norm',", "residual": "a connection of x and y, such as 'highway_residual',", "pool": "a map of positions, such as 'pool',"}


class Block(Module):
    """y = residual(x, dropout(layer(norm(x)))), or with the norm after the residual.

    Args:
        config: a BlockConfig; or give its fields: `Block(d_input, layer="hyena", norm="layer_norm", ...)`.
        key: random key of the initial weights.

    forward and step return (y, state); the state is the layer's, None for channel mixers; with a pool that keeps one of
    its own, {"layer", "pool"}.
    """

    Config = BlockConfig

    def __init__(self, config: BlockConfig | int, key: EmberTensor | None = None, **fields):
        self.config = c = config if isinstance(config, BlockConfig) else BlockConfig(d_input=config, **fields)
        keys = random.split(key if key is not None else random.next_key(), 4)
        self.norm = part("norm", c.norm, c.norm_config, c.d_input, keys[1])
        self.layer = _layer(c, keys[0]) if c.layer else None
        self.residual = part("residual", c.residual, c.residual_config, c.d_input, keys[2])
        self.pool = part("pool", c.pool, c.pool_config, c.d_input, keys[3])

    def forward(self, x: EmberTensor, state=None) -> tuple[EmberTensor, Any]:
        """(B, L, d_input) to the same shape (the pool may shorten it)."""
        return self._run(x, state, "forward")

    def step(self, x: EmberTensor, state=None) -> tuple[EmberTensor, Any]:
        """One position, (B, d_input)."""
        return self._run(x, state, "step")

    def initial_state(self, batch: int, dtype="float32"):
        """The state before the first position: the layer's, None for channel mixers; with a pool {"layer", "pool"}."""
        with beside(self):
            state = self.layer.initial_state(batch, dtype) if getattr(self.layer, "mixes_sequence", False) else None
            return {"layer": state, "pool": self.pool.initial_state(batch, dtype)} if self._pools else state

    def _run(self, x, state, form: str):
        before, pooled = (state["layer"], state["pool"]) if self._pools and state is not None else (state, None)
        y = self.norm(x) if self.norm and self.config.prenorm else x
        if self.layer is not None:
            y, before = apply(self.layer, y, before, form)
            y = dropout(y, self.config.dropout)
            y = self.residual(x, y) if self.residual else x + y
        if self.norm and not self.config.prenorm:
            y = self.norm(y)
        if self.pool is None:
            return y, before
        if not self._pools:
            return getattr(self.pool, form)(y), before
        y, pooled = getattr(self.pool, form)(y, pooled)
        return y, before if state is None else {"layer": before, "pool": pooled}

    @property
    def _pools(self) -> bool:
        return isinstance(self.pool, Pool)


def beside(module: Module):
    """Inside `with beside(module):` new tensors are made where the module's are."""
    first = next((getattr(owner, attr) for _, owner, attr in module.entries()), None)
    return nullcontext() if first is None else using(first.device)


def apply(layer: Module, x, state, form: str) -> tuple[EmberTensor, Any]:
    """(y, state) of a mixer's "forward" or "step", also of a channel mixer, whose state stays None."""
    if layer.mixes_sequence:
        return getattr(layer, form)(x, state)
    return getattr(layer, form)(x), None


def part(place: str, name: str | None, fields: dict, d_input: int, key: EmberTensor | None = None) -> Module | None:
    """The registered layer that stands as "norm", "residual" or "pool", None for none. Raises ConfigError for a layer of another kind."""
    if not name:
        return None
    made = layers.instantiate(name, d_input=d_input, key=key, **fields)
    needed = sum(p.default is p.empty for p in inspect.signature(made.forward).parameters.values())
    if needed != (2 if place == "residual" else 1) or getattr(made, "mixes_sequence", False) or (place == "norm" and isinstance(made, Pool)):
        raise ConfigError(f"block: expected {_KINDS[place]} as {place}; received {name!r}")
    return made


def _layer(c: BlockConfig, key):
    ready = c.layer_config
    if isinstance(ready, dict):
        ready = dict(ready)
        if ready.pop("d_input", c.d_input) != c.d_input:
            raise ConfigError(f"block: expected {c.layer}'s config without d_input, which is the block's, {c.d_input}; "
                              f"received {c.layer_config['d_input']}")
        made = layers.instantiate(c.layer, d_input=c.d_input, key=key, **ready)
        if not hasattr(made, "mixes_sequence"):
            raise ConfigError(f"block: expected a channel or sequence mixer as layer; received {c.layer!r}, "
                              "whose class derives from neither ChannelMixer nor SequenceMixer")
        return made
    if getattr(ready, "d_input", None) != c.d_input:
        raise ConfigError(f"block: expected {c.layer}'s d_input to be the block's, {c.d_input}; received {ready!r}")
    return layers.instantiate(c.layer, ready, key=key)
