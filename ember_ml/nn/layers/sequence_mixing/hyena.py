"""The Hyena operator: long implicit convolutions between gates, in place of attention."""

from __future__ import annotations

import dataclasses

from ember_ml.errors import ConfigError, ShapeError
from ember_ml.nn import initializers
from ember_ml.nn.layers.activations import ACTIVATIONS, ActivationName
from ember_ml.nn.layers.channel_mixing.dense import Dense, DenseConfig
from ember_ml.nn.layers.dropout import dropout
from ember_ml.nn.layers.sequence_mixing.base import SequenceMixer
from ember_ml.nn.layers.sequence_mixing.frozen_filters import FrozenFilters
from ember_ml.nn.layers.sequence_mixing.hyena_filter import HyenaFilter, HyenaFilterConfig
from ember_ml.ops import (
    broadcast_to, concat, expand_dims, fftconv, flip, ones, prepare_filter, random, reshape, short_conv, split, swap_axes,
    zeros,
)
from ember_ml.ops import sum as total
from ember_ml.ops.shape import cut
from ember_ml.registry import Rate, Size, config, layers
from ember_ml.tensor import EmberTensor


@config
class HyenaConfig:
    """d_input: channels. l_max: longest sequence. order: gates + 1, at least 2. short_taps: of the short convolution.

    dropout: on the convolution's input. filter: options of HyenaFilterConfig other than channels and l_max.
    activation: of the output, before out_proj. order_scale: a learned factor after each long convolution.
    outer_mixing: every gate but the last is summed over its channels, so that each channel meets all of them.
    """

    d_input: Size
    l_max: Size
    order: Size = 2
    short_taps: Size = 3
    dropout: Rate = 0.0
    filter: dict = dataclasses.field(default_factory=dict)
    activation: ActivationName = "identity"
    order_scale: bool = False
    outer_mixing: bool = False


@layers.register("hyena")
class Hyena(SequenceMixer):
    """The Hyena recurrence of order N.

        x_0, ..., x_{N-1}, v = short_conv(in_proj(x))
        v <- k_i * (x_i v) + D_i (x_i v)          for i = N-1 ... 1, with the long causal convolution *
        y = out_proj(act(x_0 v))

    With `outer_mixing`, sum_c x_i[c] stands for x_i in the second line; with `order_scale`, s_i times its right side.

    Args:
        config: see HyenaConfig. key: random key of the initial weights.

    Parameters: in_proj, out_proj as Dense; short_weight ((N+1) d, taps), short_bias; filter as HyenaFilter, one filter
    per channel and convolution; D (N-1, d); scale (N-1,) with `order_scale`.
    State: short inputs, long inputs (plain cache: l_max a channel), filters.

    Source: Poli et al. 2023, Hyena Hierarchy, definition 3.1.
    """

    Config = HyenaConfig

    def __init__(self, config: HyenaConfig, key: EmberTensor | None = None):
        if config.order < 2:
            raise ConfigError(f"hyena: expected an order of at least 2, got {config.order}")
        self.config = c = config
        keys = random.split(key if key is not None else random.next_key(), 6)
        wide = (c.order + 1) * c.d_input
        self.in_proj = Dense(DenseConfig(c.d_input, wide), key=keys[0])
        self.short_weight = initializers.fan_in_uniform(keys[1], (wide, c.short_taps), c.short_taps)
        self.short_bias = initializers.fan_in_uniform(keys[2], (wide,), c.short_taps)
        self.filter = HyenaFilter(HyenaFilterConfig(c.d_input * (c.order - 1), c.l_max, **c.filter), key=keys[3])
        self.D = random.normal(keys[4], (c.order - 1, c.d_input))
        if c.order_scale:
            self.scale = ones((c.order - 1,))
        self.out_proj = Dense(DenseConfig(c.d_input, c.d_input), key=keys[5])
        self._prepared = FrozenFilters()

    def filters(self, length: int | None = None) -> EmberTensor:
        """All long filters, (order - 1, d_input, length)."""
        k = self.filter(length)
        return reshape(k, (self.config.order - 1, self.config.d_input, k.shape[-1]))

    def _convolutions(self, length: int) -> list:
        """What fftconv takes as the filter of each convolution: prepared, unless it is being trained."""
        frozen = self._prepared.get(list(self.filter.tensors().values()), length,
                                  lambda: [prepare_filter(k) for k in self.filters(length)])
        return list(self.filters(length)) if frozen is None else frozen

    def _gates(self, u: EmberTensor) -> tuple[list[EmberTensor], EmberTensor]:
        """The gates x_0 ... x_{N-1}, and v, from their concatenation along axis 1."""
        first, *rest, v = split(u, self.config.order + 1, axis=1)
        if self.config.outer_mixing:
            rest = [broadcast_to(total(x, axis=1, keepdims=True), x.shape) for x in rest]
        return [first, *rest], v

    def _scaled(self, v: EmberTensor, i: int) -> EmberTensor:
        return v * self.scale[i] if self.config.order_scale else v

    def _output(self, v: EmberTensor) -> EmberTensor:
        return self.out_proj(ACTIVATIONS[self.config.activation](v))

    def forward(self, x: EmberTensor, state=None):
        """(B, L, d_input) to the same shape; L at most l_max without a state."""
        c, length = self.config, x.shape[1]
        u = swap_axes(self.in_proj(x))
        if state is None:
            if length > c.l_max:
                raise ShapeError(f"hyena: expected a length of at most l_max = {c.l_max}, got {length}; "
                                 "build the layer with a larger l_max, or continue from initial_state")
            k, after = self._convolutions(length), None
            u = short_conv(u, self.short_weight, self.short_bias)
        else:
            k = flip(state["filters"], axis=-1)
            past = concat([state["short"], u], axis=-1)
            u = cut(short_conv(past, self.short_weight, self.short_bias), c.short_taps - 1, past.shape[-1], axis=-1)
            after = {"short": cut(past, length, past.shape[-1], axis=-1), "long": [], "filters": state["filters"]}
        gates, v = self._gates(u)
        for i in range(c.order - 1):
            gate = gates[c.order - 1 - i]
            last = gates[0] if i == c.order - 2 else None
            v = dropout(v, c.dropout)
            if state is None:
                v = fftconv(v, k[i], self.D[i], v=gate, q=last)
            else:
                joined = concat([state["long"][i], v * gate], axis=-1)
                v = cut(fftconv(joined, k[i], self.D[i]), c.l_max, c.l_max + length, axis=-1)
                v = v if last is None else v * last
                after["long"].append(cut(joined, length, c.l_max + length, axis=-1))
            v = self._scaled(v, i)
        return self._output(swap_axes(v)), after

    def step(self, x: EmberTensor, state):
        """One position, (B, d_input): each convolution is one product of the cache with the filter."""
        c = self.config
        past = concat([state["short"], expand_dims(self.in_proj(x), -1)], axis=-1)
        u = (past * self.short_weight).sum(axis=-1) + self.short_bias
        gates, v = self._gates(u)
        long = []
        for i in range(c.order - 1):
            v = v * gates[c.order - 1 - i]
            cache = concat([cut(state["long"][i], 1, c.l_max, axis=-1), expand_dims(v, -1)], axis=-1)
            long.append(cache)
            v = self._scaled((cache * state["filters"][i]).sum(axis=-1) + self.D[i] * v, i)
        after = {"short": cut(past, 1, c.short_taps, axis=-1), "long": long, "filters": state["filters"]}
        return self._output(v * gates[0]), after

    def initial_state(self, batch: int, dtype="float32"):
        """Empty caches, and the filters in reverse so that a step is a plain product."""
        c, like = self.config, self.D
        wide = (c.order + 1) * c.d_input
        return {"short": zeros((batch, wide, c.short_taps - 1), dtype, like=like),
                "long": [zeros((batch, c.d_input, c.l_max), dtype, like=like) for _ in range(c.order - 1)],
                "filters": flip(self.filters(), axis=-1).astype(dtype)}
