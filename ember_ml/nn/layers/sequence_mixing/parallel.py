"""Mixers side by side on one input."""

from __future__ import annotations

import dataclasses
from typing import Any

import pydantic

from ember_ml.errors import ConfigError
from ember_ml.nn.layers.sequence_mixing.base import SequenceMixer
from ember_ml.ops import random
from ember_ml.registry import Size, config, layers
from ember_ml.tensor import EmberTensor


@config
class BranchConfig:
    """layer: registered name of a mixer. layer_config: its fields without d_input."""

    layer: str
    layer_config: dict[str, Any] = dataclasses.field(default_factory=dict)


@config
class ParallelConfig:
    """d_input: channels. mixers: the branches; each is a BranchConfig, a table of its fields, or the name of a layer."""

    d_input: Size
    mixers: list[BranchConfig]

    @pydantic.field_validator("mixers", mode="before")
    @classmethod
    def _named(cls, mixers):
        return [{"layer": m} if isinstance(m, str) else m for m in mixers] if isinstance(mixers, (list, tuple)) else mixers


@layers.register("parallel")
class Parallel(SequenceMixer):
    """y = sum_i mixer_i(x).

    Args:
        config: see ParallelConfig. key: random key of the initial weights.

    Parameters: mixers.{i} as each mixer's. State: theirs, by "0", "1", ...; channel mixers have none.

    Source: Zuo et al. 2025, Falcon-H1: A Family of Hybrid-Head Language Models, section 2.
    """

    Config = ParallelConfig
    cannot_pack = None                                     # its mixers are asked

    def __init__(self, config: ParallelConfig, key: EmberTensor | None = None):
        if not config.mixers:
            raise ConfigError("parallel: expected at least one mixer, received none")
        self.config = config
        keys = random.split(key if key is not None else random.next_key(), max(2, len(config.mixers)))
        self.mixers = [layers.instantiate(m.layer, d_input=config.d_input, key=k, **m.layer_config)
                       for m, k in zip(config.mixers, keys)]
        for mixer, m in zip(self.mixers, config.mixers):
            if not hasattr(mixer, "mixes_sequence"):
                raise ConfigError(f"parallel: expected channel or sequence mixers; received {m.layer!r}")

    def forward(self, x: EmberTensor, state=None):
        """(B, L, d_input) to the same shape."""
        return self._sum(x, state, "forward")

    def step(self, x: EmberTensor, state):
        """One position, (B, d_input)."""
        return self._sum(x, state, "step")

    def initial_state(self, batch: int, dtype="float32"):
        """The mixers' states before the first position."""
        return {str(i): m.initial_state(batch, dtype) for i, m in enumerate(self.mixers) if m.mixes_sequence}

    def _sum(self, x, state, form: str):
        total, after = None, {}
        for i, mixer in enumerate(self.mixers):
            y = getattr(mixer, form)(x, None if state is None else state[str(i)]) if mixer.mixes_sequence else getattr(mixer, form)(x)
            if mixer.mixes_sequence:
                y, after[str(i)] = y
            total = y if total is None else total + y
        return total, None if state is None else after
