"""The filters in the middle of a gated convolution: explicit taps, or the modes of a linear system.

A filter works on channels first: `forward(u, state, before, after)` is after * (filter(before * u)), (B, D, L) each; `step` is the
same for one position, (B, D), without gates.
"""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic

from ember_ml.errors import ConfigError
from ember_ml.nn import initializers
from ember_ml.nn.layers.sequence_mixing.base import state_dtype
from ember_ml.nn.module import Module
from ember_ml.nn.packing import current
from ember_ml.ops import (
    concat, expand_dims, fftconv, flip, log, modal_filter, modal_response, modal_state, modal_step, random, repeat, short_conv, zeros,
)
from ember_ml.ops import sum as total
from ember_ml.ops.kernel import launches
from ember_ml.ops.shape import cut
from ember_ml.registry import Size, config
from ember_ml.tensor import EmberTensor

#: longest filter that is applied tap by tap
DIRECT = 32


@config
class TapsFilterConfig:
    """taps: length of the filter. filters: different ones, each for d_input / filters neighbouring channels, None for one a channel.

    order: "conv", the first tap on the present, or "corr", the last one. skip: a learned direct path.
    """

    taps: Size
    filters: Size | None = None
    order: Literal["conv", "corr"] = "conv"
    skip: bool = True
    kind: Literal["taps"] = "taps"


@config
class ModalFilterConfig:
    """modes: poles of each filter. complex: poles have an angle, and residues two parts. filters, skip: as in TapsFilterConfig."""

    modes: Size = 16
    filters: Size | None = None
    complex: bool = False
    skip: bool = True
    kind: Literal["modal"] = "modal"


InnerFilterConfig = Annotated[TapsFilterConfig | ModalFilterConfig, pydantic.Field(discriminator="kind")]


def inner_filter(c: InnerFilterConfig, d_input: int, key: EmberTensor) -> _InnerFilter:
    """The filter of a config, for `d_input` channels."""
    return (TapsFilter if isinstance(c, TapsFilterConfig) else ModalFilter)(c, d_input, key)


class _InnerFilter(Module):
    """Base. Parameter: D (d_input,), the direct path, with `skip`."""

    def __init__(self, config, d_input: int, key: EmberTensor):
        if config.filters is not None and d_input % config.filters:
            raise ConfigError(f"gated_conv: expected filters to divide d_input = {d_input}, received {config.filters}")
        self.config, self.d_input = config, d_input
        self.D = random.normal(key, (d_input,)) if config.skip else None

    def per_channel(self, x: EmberTensor) -> EmberTensor:
        """A parameter of each filter as one of each channel."""
        times = self.d_input // x.shape[0]
        return x if times == 1 else repeat(x, times, axis=0)

    def _direct(self, y: EmberTensor, u: EmberTensor) -> EmberTensor:
        """y + D u, channels on axis 1."""
        return y if self.D is None else y + u * (self.D if u.ndim == 2 else expand_dims(self.D, -1))


def _gated(u, before):
    return u if before is None else u * before


class TapsFilter(_InnerFilter):
    """y_t = sum_j h_j u_{t-j} + D u_t.

    Parameters: h (filters, taps), in the order that the config says; D. State: the last taps - 1 inputs, (B, d_input, taps - 1).
    """

    def __init__(self, config: TapsFilterConfig, d_input: int, key: EmberTensor):
        first, second = random.split(key)
        super().__init__(config, d_input, first)
        self.h = initializers.fan_in_uniform(second, (config.filters or d_input, config.taps), config.taps)

    def kernel(self, order: str) -> EmberTensor:
        """The taps of every channel in an order, (d_input, taps)."""
        h = self.per_channel(self.h)
        return h if order == self.config.order else flip(h, axis=-1)

    def forward(self, u: EmberTensor, state=None, before: EmberTensor | None = None, after: EmberTensor | None = None):
        """(y (B, D, L), state)."""
        past, length = self.config.taps - 1, u.shape[-1]
        packing, direct = current(), self.config.taps <= DIRECT
        if state is None and (not direct or packing is None and launches(u, "fftconv")):
            return fftconv(u, self.kernel("conv"), self.D, v=before, q=after), None
        u = _gated(u, before)
        long = u if state is None else concat([state.astype(u.dtype), u], axis=-1)
        segments = None if packing is None else packing.segments
        y = short_conv(long, self.kernel("corr"), segments=segments) if direct else fftconv(long, self.kernel("conv"))
        if state is not None:
            y, state = cut(y, past, past + length, axis=-1), cut(long, length, past + length, axis=-1).astype(state.dtype)
        y = self._direct(y, u)
        return (y if after is None else y * after), state

    def step(self, u: EmberTensor, state):
        """(y (B, D), state): one product of the last inputs with the taps."""
        long = concat([state.astype(u.dtype), expand_dims(u, -1)], axis=-1)
        y = total(long * self.kernel("corr"), axis=-1)
        return self._direct(y, u), cut(long, 1, self.config.taps, axis=-1).astype(state.dtype)

    def initial_state(self, batch: int, dtype):
        """Zeros before the first position."""
        return zeros((batch, self.d_input, self.config.taps - 1), dtype, like=self.h)


class ModalFilter(_InnerFilter):
    """y_t = sum_{j <= t} h_{t-j} u_j + D u_t,  h_t = Re(sum_s residues_s e^{(log_decay_s + i angle_s) t}).

    Parameters: log_decay (filters, modes), angle likewise if complex; residues (filters, modes), or (filters, modes, 2), real and imaginary
    part; D. State: what the inputs left in the modes, (B, d_input, modes), or (B, d_input, modes, 2): O(1) a token.
    """

    def __init__(self, config: ModalFilterConfig, d_input: int, key: EmberTensor):
        keys = random.split(key, 4)
        super().__init__(config, d_input, keys[0])
        shape = (config.filters or d_input, config.modes)
        self.log_decay = log(random.uniform(keys[1], shape, 0.5, 0.999))
        self.angle = random.uniform(keys[2], shape, -3.14, 3.14) if config.complex else None
        self.residues = initializers.normal(keys[3], shape + ((2,) if config.complex else ()), config.modes ** -0.5)

    def modes(self):
        """(log_decay, angle, residues) of every channel."""
        return tuple(None if x is None else self.per_channel(x) for x in (self.log_decay, self.angle, self.residues))

    def kernel(self, length: int) -> EmberTensor:
        """h_0 ... h_{length - 1} of every channel, (d_input, length)."""
        return self.per_channel(modal_filter(self.log_decay, self.angle, self.residues, length))

    def forward(self, u: EmberTensor, state=None, before: EmberTensor | None = None, after: EmberTensor | None = None):
        """(y (B, D, L), state)."""
        h = self.kernel(u.shape[-1])
        if state is None:
            return fftconv(u, h, self.D, v=before, q=after), None
        log_decay, angle, residues = self.modes()
        u = _gated(u, before)
        y = fftconv(u, h, self.D) + modal_response(state, log_decay, angle, residues, u.shape[-1]).astype(u.dtype)
        return (y if after is None else y * after), modal_state(u, log_decay, angle, state)

    def step(self, u: EmberTensor, state):
        """(y (B, D), state)."""
        y, state = modal_step(u, state, *self.modes())
        return self._direct(y, u), state

    def initial_state(self, batch: int, dtype):
        """Zeros, in float32 at least."""
        wide = state_dtype(dtype)
        return zeros((batch, self.d_input, *self.residues.shape[1:]), wide, like=self.log_decay)
