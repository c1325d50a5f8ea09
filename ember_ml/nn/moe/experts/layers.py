"""Any registered layer as experts, each with parameters of its own."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from ember_ml.errors import ConfigError
from ember_ml.nn.moe.experts.base import Experts, weighted_sum
from ember_ml.ops import concat, moe_combine, moe_gather, moe_plan, random, reshape, split, stack
from ember_ml.registry import Size, config, layers
from ember_ml.tensor import EmberTensor


@config
class LayerExpertsConfig:
    """d_input: channels. num_experts: E. layer: registered name. layer_config: its fields without d_input."""

    d_input: Size
    num_experts: Size
    layer: str
    layer_config: dict[str, Any] = dataclasses.field(default_factory=dict)


class LayerExperts(Experts):
    """f_e = the e-th of E layers of one kind. Sequence mixers among them see whole sequences.

    `forward` runs every expert on everything. `mixed` runs each on what it was chosen for where the engine can wait for the routing
    (NumPy, torch); inside a compiled step and on MLX it computes all and picks, since shapes must not depend on values.

    Parameters: experts.0 to experts.<E - 1>, as the layer's.
    """

    Config = LayerExpertsConfig

    def __init__(self, config: LayerExpertsConfig, key: EmberTensor | None = None):
        self.config = c = config
        keys = random.split(key if key is not None else random.next_key(), c.num_experts)
        self.experts = [layers.instantiate(c.layer, c.d_input, key=keys[e], **c.layer_config) for e in range(c.num_experts)]
        if not hasattr(self.experts[0], "mixes_sequence"):
            raise ConfigError(f"moe: expected expert_type to be a channel or sequence mixer, received {c.layer!r}")
        self.mixes_sequence = self.experts[0].mixes_sequence
        self.d_output = getattr(self.experts[0].config, "d_output", None) or c.d_input

    def forward(self, x: EmberTensor) -> EmberTensor:
        return stack([self._run(e, x) for e in range(self.config.num_experts)], axis=0)

    def sequence(self, x: EmberTensor, states: list | None = None) -> tuple[EmberTensor, list | None]:
        """Sequences through every expert that mixes positions: (B, L, d_input) to (E, B, L, d_output), and the states after."""
        out, after = zip(*(expert(x, state) for expert, state in zip(self.experts, states or [None] * len(self.experts))))
        return stack(out, axis=0), None if states is None else list(after)

    def step(self, x: EmberTensor, states: list) -> tuple[EmberTensor, list]:
        """One position through every expert: (B, d_input) to (E, B, d_output), and the states after it."""
        out, after = zip(*(expert.step(x, state) for expert, state in zip(self.experts, states)))
        return stack(out, axis=0), list(after)

    def initial_state(self, batch: int, dtype="float32") -> list:
        """The state of every expert."""
        return [expert.initial_state(batch, dtype) for expert in self.experts]

    def mixed(self, x: EmberTensor, routing) -> EmberTensor:
        """The weighted sum over slots: items x (N, ...) that are routed whole, tokens or sequences."""
        plan = moe_plan(routing.ids, self.config.num_experts, routing.complete, block=1)
        ends = x.backend.runtime.read(plan.offsets.data)
        if ends is None or x.shape[0] == 0:
            every = self.forward(x)
            y = weighted_sum(reshape(every, (*every.shape[:2], math.prod(every.shape[2:]))), routing)
            return reshape(y, every.shape[1:])
        rows = moe_gather(_flat(x), plan)
        sizes = [hi - lo for lo, hi in zip(ends, ends[1:])]
        nobodys = rows.shape[0] - ends[-1]
        parts = split(rows, (*sizes, nobodys), axis=0)
        out = [self._run(e, reshape(part, (size, *x.shape[1:])))
               for e, (part, size) in enumerate(zip(parts, sizes)) if size]
        if not out:                                            # every slot was dropped
            return x * 0.0
        if nobodys:
            out.append(reshape(parts[-1], (nobodys, *x.shape[1:])) * 0.0)
        y = concat(out, axis=0)
        combined = moe_combine(_flat(y), plan.inverse, routing.weights)
        return reshape(combined, (x.shape[0], *y.shape[1:]))

    def _run(self, e: int, x: EmberTensor) -> EmberTensor:
        y = self.experts[e](x)
        return y[0] if self.mixes_sequence else y


def _flat(x: EmberTensor) -> EmberTensor:
    return reshape(x, (x.shape[0], math.prod(x.shape[1:])))
