"""Mixtures of experts: dense (all experts weighed) and sparse (k of them per token)."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from ember_ml.errors import ConfigError, ShapeError, UnsupportedDtype
from ember_ml.nn.layers.channel_mixing.dense import Dense, DenseConfig
from ember_ml.nn.module import Module
from ember_ml.nn.moe.combination import combiners
from ember_ml.nn.moe.experts import LayerExperts, LayerExpertsConfig, experts
from ember_ml.nn.moe.experts.base import weighted_sum
from ember_ml.nn.moe.routing import routers
from ember_ml.ops import arange, broadcast_to, mean, random, reshape, sigmoid
from ember_ml.registry import Size, config, layers
from ember_ml.tensor import EmberTensor


@config
class MixtureOfExpertsConfig:
    """A mixture of experts.

    Args:
        d_input: channels. num_experts: E.
        expert_type: "mlp" (stacked perceptrons, see MLPExpertsConfig) or any registered layer ("transformer", "hyena", ...).
        router_type: softmax, sigmoid, noisy_topk, top_p, expert_choice or position.
        combiner_type: weighted_sum or concat.
        expert_config, router_config, combiner_config: their fields, without those that follow from the above.
    """

    d_input: Size
    num_experts: Size
    expert_type: str = "mlp"
    router_type: str = "softmax"
    combiner_type: str = "weighted_sum"
    expert_config: dict[str, Any] = dataclasses.field(default_factory=dict)
    router_config: dict[str, Any] = dataclasses.field(default_factory=dict)
    combiner_config: dict[str, Any] = dataclasses.field(default_factory=dict)


@config
class SparseMoEConfig:
    """A sparse mixture of experts.

    Args:
        k: experts per token; other fields as MixtureOfExpertsConfig.
        shared: number of shared experts, which work on every token with weight 1 (DeepSeek-AI 2024); stacked perceptrons of
            expert_config. shared_gate: weigh them by sigmoid(w_g x) (Qwen2-MoE).
        level: "token"; "sequence" routes whole sequences by the mean of their tokens, for experts that mix positions.
    """

    d_input: Size
    num_experts: Size
    expert_type: str = "mlp"
    k: Size = 2
    router_type: str = "softmax"
    combiner_type: str = "weighted_sum"
    expert_config: dict[str, Any] = dataclasses.field(default_factory=dict)
    router_config: dict[str, Any] = dataclasses.field(default_factory=dict)
    combiner_config: dict[str, Any] = dataclasses.field(default_factory=dict)
    shared: int = 0
    shared_gate: bool = False
    level: Literal["token", "sequence"] = "token"


class _Mixture(Module):
    """Experts, router and combiner from one config. Also built from the config's fields: `SparseMoE(64, 8, "mlp", 2)`."""

    mixes_sequence = False

    def __init__(self, *args, key: EmberTensor | None = None, **fields):
        given = fields.pop("config", args[0] if args else None)
        self.config = c = given if isinstance(given, self.Config) else self.Config(*args, **fields)
        sparse = isinstance(c, SparseMoEConfig)
        k = c.k if sparse else 1 if c.router_type == "position" else c.num_experts
        if k > c.num_experts:
            raise ConfigError(f"moe: expected k of at most num_experts = {c.num_experts}, received {k}")
        keys = random.split(key if key is not None else random.next_key(), 4)
        own = {"d_input": c.d_input, "num_experts": c.num_experts}
        self.router = _made("router", routers, c.router_type, c.router_config, {**own, "k": k}, keys[0])
        if c.expert_type in experts:
            self.experts = _made("expert", experts, c.expert_type, c.expert_config, own, keys[1])
        else:
            layers.get(c.expert_type)                      # an unknown name says which there are
            self.experts = LayerExperts(LayerExpertsConfig(**own, layer=c.expert_type, layer_config=c.expert_config), key=keys[1])
        self.combiner = _made("combiner", combiners, c.combiner_type, c.combiner_config, {
            "d_input": c.d_input, "d_expert": self.experts.d_output, "slots": self.router.slots if sparse else c.num_experts}, keys[2])
        if self.experts.d_output != c.d_input and getattr(self.combiner, "out", None) is None:
            raise ConfigError(f"moe: expected experts whose output has d_input = {c.d_input} channels, or a combiner with an "
                              f"output layer; received experts with {self.experts.d_output}")
        self.mixes_sequence = self.experts.mixes_sequence
        self._spare_key = keys[3]

    def _tokens(self, x: EmberTensor) -> tuple[EmberTensor, EmberTensor | None]:
        """(tokens (T, d_input), their positions or None) of x (..., d_input)."""
        if not isinstance(x, EmberTensor):
            raise TypeError(f"moe: expected x to be an EmberTensor, got {type(x).__name__}; make one with em.tensor(...)")
        if not x.dtype.is_inexact:
            raise UnsupportedDtype(f"moe: expected x of a floating-point dtype, got {x.dtype}; cast it with .astype('float32')")
        if x.ndim < 1 or x.shape[-1] != self.config.d_input:
            raise ShapeError(f"moe: expected x (..., d_input) with d_input = {self.config.d_input}, got {x.shape}")
        if x.ndim == 2:
            return x, None
        count = x.size // x.shape[-1]
        tokens = reshape(x, (count, x.shape[-1]))
        if x.ndim == 1:
            return tokens, None
        at = broadcast_to(arange(x.shape[-2], dtype="int32", like=x), x.shape[:-1])
        return tokens, reshape(at, (count,))


def _made(kind, table, name, fields, own, key):
    """The router, expert or combiner of that name with the fields of its config and those that follow from the layer's."""
    for field in own.keys() & fields.keys():
        if fields[field] != own[field]:
            raise ConfigError(f"moe: expected {kind}_config without {field}, which follows from the layer's fields ({own[field]}); "
                              f"received {fields[field]!r}")
    known = {f.name for f in dataclasses.fields(table.get(name).Config)}
    asked = {field: value for field, value in own.items() if field in known or field not in ("d_expert", "slots")}
    return table.instantiate(name, key=key, **{**fields, **asked})


@layers.register("mixture_of_experts")
class MixtureOfExperts(_Mixture):
    """y = sum_e w_e(x) f_e(x) over all experts, w from the router (for softmax: its probabilities).

    Args:
        config: a MixtureOfExpertsConfig; or give its fields. key: random key of the initial weights.

    Parameters: router, experts, combiner (the router's bias, which only chooses, has no effect here).
    With experts that mix positions this is a sequence mixer: forward and step return (y, state).

    Source: Jacobs et al. 1991, Adaptive Mixtures of Local Experts.
    """

    Config = MixtureOfExpertsConfig

    def forward(self, x: EmberTensor, state=None):
        """(..., d_input), same shape and dtype."""
        tokens, positions = self._tokens(x)
        w = self.router.mixture(tokens) if positions is None or not hasattr(self.router.config, "scheme") \
            else self.router.mixture(tokens, positions)
        outputs, state = self.experts.sequence(x, state) if self.mixes_sequence else (self.experts(tokens), None)
        y = self.combiner.dense(reshape(outputs, (outputs.shape[0], tokens.shape[0], outputs.shape[-1])), w)
        y = reshape(y, x.shape).astype(x.dtype)
        return (y, state) if self.mixes_sequence else y

    def step(self, x: EmberTensor, state=None):
        """One position, (B, d_input)."""
        if not self.mixes_sequence:
            return self.forward(x)
        outputs, state = self.experts.step(x, state)
        return self.combiner.dense(outputs, self.router.mixture(x)).astype(x.dtype), state

    def initial_state(self, batch: int, dtype="float32"):
        """The experts' states before the first position; for experts that mix positions."""
        return self.experts.initial_state(batch, dtype)


@layers.register("moe")
class SparseMoE(_Mixture):
    """y = sum_{e in S(x)} w_e(x) f_e(x), plus the shared experts: the router chooses S and the weights w.

    Stacked perceptrons compute by grouped matrix products: the cost grows with k, not with E. Other experts: see LayerExperts.
    With all experts chosen (k = E) it equals MixtureOfExperts.

    Args:
        config: a SparseMoEConfig; or give its fields: `SparseMoE(d_input, num_experts, expert_type, k)`. key: random key of
            the initial weights.

    Parameters: router, experts, combiner, and with shared experts: shared, shared_gate (1, d_input). Buffers: router.bias.
    With experts that mix positions this is a sequence mixer: forward and step return (y, state); each expert then sees whole
    sequences, and tokens choose whose output they take.

    Source: Shazeer et al. 2017, Outrageously Large Neural Networks; DeepSeek-AI 2024, DeepSeek-V3 (shared experts, balancing).
    """

    Config = SparseMoEConfig

    def __init__(self, *args, key: EmberTensor | None = None, **fields):
        super().__init__(*args, key=key, **fields)
        c = self.config
        if c.shared < 0 or c.shared_gate and not c.shared:
            raise ConfigError(f"moe: expected shared of at least {1 if c.shared_gate else 0}"
                              f"{' for shared_gate' if c.shared_gate else ''}, received {c.shared}")
        if c.level == "sequence" and not self.mixes_sequence:
            raise ConfigError(f"moe: expected level 'token' for experts that treat positions alone, received 'sequence' with "
                              f"expert_type {c.expert_type!r}")
        if c.combiner_type != "weighted_sum" and self.mixes_sequence:
            raise ConfigError(f"moe: expected combiner_type 'weighted_sum' for experts that mix positions, received "
                              f"{c.combiner_type!r}")
        self.cannot_pack = "it routes by the mean of the row" if c.level == "sequence" else None
        self.shared = self.shared_gate = None
        if c.shared:
            first, second = random.split(self._spare_key)
            self.shared = _made("expert", experts, "mlp", c.expert_config,
                                {"d_input": c.d_input, "num_experts": c.shared}, first)
            self.shared_gate = Dense(DenseConfig(c.d_input, 1, bias=False), key=second) if c.shared_gate else None

    def forward(self, x: EmberTensor, state=None):
        """(..., d_input), same shape and dtype."""
        tokens, positions = self._tokens(x)
        if not self.mixes_sequence:
            y = self.combiner(self.experts, tokens, self.router(tokens, positions))
        elif self.config.level == "sequence":
            if x.ndim != 3:
                raise ShapeError(f"moe: expected x (batch, length, d_input) for level 'sequence', got {x.shape}")
            y = self.combiner(self.experts, x, self.router(mean(x, axis=1)))
        else:
            outputs, state = self.experts.sequence(x, state)
            y = self.combiner(_Computed(outputs), tokens, self.router(tokens, positions))
        y = self._with_shared(y if y.shape == tokens.shape else reshape(y, tokens.shape), tokens)
        y = (y if y.shape == x.shape else reshape(y, x.shape)).astype(x.dtype)
        return (y, state) if self.mixes_sequence else y

    def step(self, x: EmberTensor, state=None):
        """One position, (B, d_input)."""
        if not self.mixes_sequence:
            return self.forward(x)
        if self.config.level == "sequence":
            raise ConfigError("moe: cannot step with level 'sequence', which routes by the mean of the whole sequence")
        outputs, state = self.experts.step(x, state)
        y = self.combiner(_Computed(outputs), x, self.router(x))
        return self._with_shared(y, x).astype(x.dtype), state

    def initial_state(self, batch: int, dtype="float32"):
        """The experts' states before the first position; for experts that mix positions."""
        return self.experts.initial_state(batch, dtype)

    def _with_shared(self, y: EmberTensor, tokens: EmberTensor) -> EmberTensor:
        if self.shared is None:
            return y
        always = self.shared(tokens).sum(axis=0)
        return y + (always if self.shared_gate is None else always * sigmoid(self.shared_gate(tokens)))


class _Computed:
    """Experts whose outputs (E, ..., d) on everything are there already."""

    def __init__(self, outputs: EmberTensor):
        self.outputs = outputs

    def mixed(self, x: EmberTensor, routing) -> EmberTensor:
        flat = reshape(self.outputs, (self.outputs.shape[0], x.shape[0], self.outputs.shape[-1]))
        return weighted_sum(flat, routing)
