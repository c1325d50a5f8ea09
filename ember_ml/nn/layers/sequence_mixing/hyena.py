"""The Hyena operator: long implicit convolutions between gates, in place of attention."""

from __future__ import annotations

import dataclasses
from typing import Literal

from ember_ml.errors import ConfigError, ShapeError
from ember_ml.nn import initializers
from ember_ml.nn.layers.activations import ACTIVATIONS, ActivationName
from ember_ml.nn.layers.channel_mixing.dense import Dense, DenseConfig
from ember_ml.nn.layers.dropout import dropout
from ember_ml.nn.layers.sequence_mixing.base import SequenceMixer
from ember_ml.nn.layers.sequence_mixing.frozen_filters import FrozenFilters
from ember_ml.nn.layers.sequence_mixing.hyena_filter import HyenaFilter
from ember_ml.nn.layers.sequence_mixing.online_conv import OnlineFilter, convolve_chunk, convolve_step, initial_cache
from ember_ml.nn.layers.sequence_mixing.rational_filter import RationalFilter
from ember_ml.ops import (
    broadcast_to, concat, expand_dims, fftconv, ones, prepare_filter, random, repeat, reshape, short_conv, split, swap_axes,
    zeros,
)
from ember_ml.ops import sum as total
from ember_ml.ops.shape import cut
from ember_ml.registry import Count, Rate, Size, config, layers
from ember_ml.tensor import EmberTensor


@config
class HyenaConfig:
    """d_input: channels. l_max: longest sequence. order: gates + 1, at least 2. short_taps: of the short convolution.

    dropout: on the convolution's input. filter: options of HyenaFilterConfig other than channels and l_max.
    activation: of the output, before out_proj. order_scale: a learned factor after each long convolution.
    outer_mixing: every gate but the last is summed over its channels, so that each channel meets all of them.
    d_inner: channels of the gates, None for d_input. groups: in_proj gives so many times fewer channels, which are repeated.
    head_dim: channels of a head, which meet in an outer product and share a filter; order 2 alone.
    filter_kind: HyenaFilter, or RationalFilter with its own options.
    """

    d_input: Size
    l_max: Size
    order: Count = 2
    short_taps: Size = 3
    dropout: Rate = 0.0
    filter: dict = dataclasses.field(default_factory=dict)
    activation: ActivationName = "identity"
    order_scale: bool = False
    outer_mixing: bool = False
    d_inner: Size | None = None
    groups: Size = 1
    head_dim: Size = 1
    filter_kind: Literal["implicit", "rational"] = "implicit"


@layers.register("hyena")
class Hyena(SequenceMixer):
    """The Hyena recurrence of order N.

        x_0, ..., x_{N-1}, v = short_conv(in_proj(x))
        v <- k_i * (x_i v) + D_i (x_i v)          for i = N-1 ... 1, with the long causal convolution *
        y = out_proj(act(x_0 v))

    With `outer_mixing`, sum_c x_i[c] stands for x_i in the second line; with `order_scale`, s_i times its right side. With `head_dim`
    v[d1] x_1[d2] is convolved for all channels d1, d2 of a head, and y[d2] = out_proj(act(sum_d1 x_0[d1] v[d1, d2])).

    Args:
        config: see HyenaConfig. key: random key of the initial weights.

    Parameters: in_proj, out_proj as Dense; short_weight ((N+1) d, taps), short_bias; filter as HyenaFilter or RationalFilter, one filter
    per head and convolution; D (N-1, heads); scale (N-1,) with `order_scale`.
    State: short, the last inputs of the short convolution; long, of each long convolution the inputs so far and what they add to outputs to
    come, in blocks (`online_conv`, docs/decoding.md): at most 2 l_max + 64 numbers a channel; at, positions so far; filters.

    Source: Poli et al. 2023, Hyena Hierarchy, definition 3.1; Massaroli et al. 2023, Laughing Hyena Distillery, section 5 (heads).
    """

    Config = HyenaConfig
    cannot_pack = "its filters are as long as the row and applied by one transform, which has no borders inside"
    only_looks_back = True

    def __init__(self, config: HyenaConfig, key: EmberTensor | None = None):
        if config.order < 2:
            raise ConfigError(f"hyena: expected an order of at least 2, got {config.order}")
        self.config = c = config
        self.inner = c.d_inner or c.d_input
        wide, self.heads = (c.order + 1) * self.inner, self.inner // c.head_dim
        if wide % c.groups or self.inner % c.head_dim:
            raise ConfigError(f"hyena: expected groups to divide the {wide} channels of gates and v, and head_dim the {self.inner} of each; "
                              f"received groups={c.groups}, head_dim={c.head_dim}")
        if c.head_dim > 1 and (c.order != 2 or c.outer_mixing):
            raise ConfigError(f"hyena: head_dim > 1 needs order=2 without outer_mixing; received head_dim={c.head_dim}, order={c.order}, "
                              f"outer_mixing={c.outer_mixing}")
        keys = random.split(key if key is not None else random.next_key(), 6)
        self.in_proj = Dense(DenseConfig(c.d_input, wide // c.groups), key=keys[0])
        self.short_weight = initializers.fan_in_uniform(keys[1], (wide, c.short_taps), c.short_taps)
        self.short_bias = initializers.fan_in_uniform(keys[2], (wide,), c.short_taps)
        kind = HyenaFilter if c.filter_kind == "implicit" else RationalFilter
        self.filter = kind(kind.Config(self.heads * (c.order - 1), c.l_max, **c.filter), key=keys[3])
        self.D = random.normal(keys[4], (c.order - 1, self.heads))
        if c.order_scale:
            self.scale = ones((c.order - 1,))
        self.out_proj = Dense(DenseConfig(self.inner, c.d_input), key=keys[5])
        self._prepared, self._prepared_state, self._taps = FrozenFilters(), FrozenFilters(), FrozenFilters()

    def filters(self, length: int | None = None) -> EmberTensor:
        """All long filters, (order - 1, heads, length)."""
        k = self.filter(length)
        return reshape(k, (self.config.order - 1, self.heads, k.shape[-1]))

    def _project(self, x: EmberTensor) -> EmberTensor:
        u = self.in_proj(x)
        return u if self.config.groups == 1 else concat([u] * self.config.groups, axis=-1)

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

    def _product(self, v: EmberTensor, gate: EmberTensor) -> EmberTensor:
        """What is convolved, (B, inner, ...), or (B, inner head_dim, ...) with the outer products of all heads."""
        wide = self.config.head_dim
        if wide == 1:
            return v * gate
        (batch, _, *rest), heads = v.shape, self.heads
        both = reshape(v, (batch, heads, wide, 1, *rest)) * reshape(gate, (batch, heads, 1, wide, *rest))
        return reshape(both, (batch, heads * wide * wide, *rest))

    def _read(self, a: EmberTensor, gate: EmberTensor) -> EmberTensor:
        """The convolution's output under the last gate, (B, inner, ...)."""
        wide = self.config.head_dim
        if wide == 1:
            return a * gate
        (batch, _, *rest), heads = gate.shape, self.heads
        y = reshape(a, (batch, heads, wide, wide, *rest)) * reshape(gate, (batch, heads, wide, 1, *rest))
        return reshape(total(y, axis=2), gate.shape)

    def _shared(self, w: EmberTensor, axis: int) -> EmberTensor:
        """A filter or skip of every head for each of its products."""
        return w if self.config.head_dim == 1 else repeat(w, self.config.head_dim ** 2, axis=axis)

    def _output(self, v: EmberTensor) -> EmberTensor:
        return self.out_proj(ACTIVATIONS[self.config.activation](v))

    def forward(self, x: EmberTensor, state=None):
        """(B, L, d_input) to the same shape; L at most l_max without a state."""
        c, length = self.config, x.shape[1]
        u = swap_axes(self._project(x))
        if state is None:
            if length > c.l_max:
                raise ShapeError(f"hyena: expected a length of at most l_max = {c.l_max}, got {length}; "
                                 "build the layer with a larger l_max, or continue from initial_state")
            k, after = self._convolutions(length), None
            u = short_conv(u, self.short_weight, self.short_bias)
        else:
            k = self._decoding(state)
            past = concat([state["short"], u], axis=-1)
            u = cut(short_conv(past, self.short_weight, self.short_bias), c.short_taps - 1, past.shape[-1], axis=-1)
            after = {"short": cut(past, length, past.shape[-1], axis=-1), "long": [], "filters": state["filters"],
                     "at": state["at"] + length}
        gates, v = self._gates(u)
        for i in range(c.order - 1):
            gate = gates[c.order - 1 - i]
            last = gates[0] if i == c.order - 2 else None
            v = dropout(v, c.dropout)
            if state is None:
                v = fftconv(v, k[i], self.D[i], v=gate, q=last, head_dim=c.head_dim)
            else:
                v, cache = convolve_chunk(state["long"][i], state["at"], self._product(v, gate), self._shared(self.D[i], 0), k[i])
                after["long"].append(cache)
                v = v if last is None else self._read(v, last)
            v = self._scaled(v, i)
        return self._output(swap_axes(v)), after

    def step(self, x: EmberTensor, state):
        """One position, (B, d_input): O(log^2 l_max) multiply-adds a channel, averaged over l_max positions."""
        c = self.config
        past = concat([state["short"], expand_dims(self._project(x), -1)], axis=-1)
        u = (past * self.short_weight).sum(axis=-1) + self.short_bias
        gates, v = self._gates(u)
        k, long = self._decoding(state), []
        for i in range(c.order - 1):
            x_i = self._product(v, gates[c.order - 1 - i])
            v, cache = convolve_step(state["long"][i], state["at"], x_i, k[i])
            long.append(cache)
            v = v + self._shared(self.D[i], 0) * x_i
            v = self._scaled(v if i < c.order - 2 else self._read(v, gates[0]), i)
        after = {"short": cut(past, 1, c.short_taps, axis=-1), "long": long, "filters": state["filters"],
                 "at": state["at"] + 1}
        return self._output(v), after

    def _decoding(self, state) -> list[OnlineFilter]:
        """The filters of a state for all rows of each convolution."""
        frozen = self._prepared_state.get([state["filters"]], self.config.l_max,
                                          lambda: [OnlineFilter(self._shared(k, 0), prepare=True) for k in state["filters"]])
        return [OnlineFilter(self._shared(k, 0), prepare=False) for k in state["filters"]] if frozen is None else frozen

    def initial_state(self, batch: int, dtype="float32"):
        """Empty caches, and the filters, which later changes of the parameters do not touch. States of the same parameters share them."""
        c, like = self.config, self.D
        frozen = self._taps.get(list(self.filter.tensors().values()), c.l_max, lambda: [self.filters()])
        filters = self.filters() if frozen is None else frozen[0]
        wide = (c.order + 1) * self.inner
        return {"short": zeros((batch, wide, c.short_taps - 1), dtype, like=like),
                "long": [initial_cache(batch, self.inner * c.head_dim, c.l_max, dtype, like) for _ in range(c.order - 1)],
                "filters": filters.astype(dtype), "at": zeros((), "int32", like=like)}
