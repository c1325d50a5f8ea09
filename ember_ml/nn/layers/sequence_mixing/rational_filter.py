"""The long filter as a rational transfer function: few coefficients, any length by one FFT, and a recurrence of few states."""

from __future__ import annotations

from ember_ml.errors import ConfigError, ShapeError
from ember_ml.nn import initializers
from ember_ml.nn.layers.sequence_mixing.base import state_dtype
from ember_ml.nn.module import Module
from ember_ml.ops import concat, expand_dims, irfft, ones, pad, random, repeat, rfft, zeros
from ember_ml.ops.shape import cut
from ember_ml.registry import Size, config
from ember_ml.tensor import EmberTensor


@config
class RationalFilterConfig:
    """channels: number of filters. l_max: longest sequence, over d_state. d_state: N. denominators: that channels share evenly, None for one each."""

    channels: Size
    l_max: Size
    d_state: Size = 4
    denominators: Size | None = None


class RationalFilter(Module):
    """k = impulse response of h_0 + (b_1 z^-1 + ... + b_N z^-N) / (1 + a_1 z^-1 + ... + a_N z^-N), folded onto n points.

    The FFT of n points samples the transfer function, so that what the response has beyond n comes back at its beginning; n is l_max, or
    one more if that is odd. The filter starts with N random taps, without poles.

    Args:
        config: see RationalFilterConfig. key: random key of the initial taps, uniform in +-1/sqrt(N).

    Parameters: a (denominators, N), b (channels, N), h_0 (channels,).

    Source: Parnichkun et al. 2024, State-Free Inference of State-Space Models: The Transfer Function Approach.
    """

    Config = RationalFilterConfig

    def __init__(self, config: RationalFilterConfig, key: EmberTensor | None = None):
        self.config = c = config
        shared = c.denominators or c.channels
        if c.channels % shared or c.l_max <= c.d_state:
            raise ConfigError(f"rational filter: expected denominators to divide channels = {c.channels} and l_max over d_state = {c.d_state}; "
                              f"received denominators={c.denominators}, l_max={c.l_max}")
        self.a, self.h_0 = zeros((shared, c.d_state)), ones((c.channels,))
        self.b = initializers.fan_in_uniform(key if key is not None else random.next_key(), (c.channels, c.d_state), c.d_state)

    def denominators(self) -> EmberTensor:
        """a_1 ... a_N for every channel, (channels, N)."""
        return repeat(self.a, self.config.channels // self.a.shape[0], axis=0)

    def forward(self, length: int | None = None) -> EmberTensor:
        """The filters (channels, length); None for l_max. Raises ShapeError beyond l_max."""
        c = self.config
        length = length or c.l_max
        if length > c.l_max:
            raise ShapeError(f"rational filter: expected a length of at most l_max = {c.l_max}, got {length}; build the layer with a larger l_max")
        n, kind = c.l_max + c.l_max % 2, state_dtype(self.b.dtype)       # transforms have no half precision
        a, b, h_0 = (x.astype(kind) for x in (self.denominators(), self.b, self.h_0))
        k = irfft(rfft(pad(b, ((0, 0), (1, 0))), n=n) / rfft(concat([a[:, :1].ones_like(), a], axis=1), n=n), n=n)
        k = concat([k[:, :1] + expand_dims(h_0, 1), k[:, 1:]], axis=1)
        return cut(k, 0, length, axis=1).astype(self.b.dtype)

    def read_out(self) -> tuple[EmberTensor, EmberTensor]:
        """(c, d), (channels, N) and (channels,), of the recurrence whose response is the filter's l_max taps exactly, the folded ones included.

        d = k_0. The numerator of a response k with denominator a is their product: c_n = k_n + a_1 k_{n-1} + ... + a_{n-1} k_1.
        """
        k, a = self(), self.denominators()
        sums = []
        for n in range(1, self.config.d_state + 1):
            total = k[:, n]
            for j in range(1, n):
                total = total + a[:, j - 1] * k[:, n - j]
            sums.append(expand_dims(total, 1))
        return concat(sums, axis=1), k[:, 0]

    def step(self, u: EmberTensor, state: EmberTensor, read_out: tuple[EmberTensor, EmberTensor] | None = None) -> tuple[EmberTensor, EmberTensor]:
        """One position: y = c . x + d u, then x <- [u - a . x, x_1, ..., x_{N-1}].

        For filters whose poles lie within the unit circle. Nothing in training holds them to that, and outside of it rounding errors grow with
        every position; a layer therefore decodes by the filter's taps, as it computes in parallel.

        Args:
            u: (B, channels). state: x (B, channels, N). read_out: (c, d), if they are at hand.

        Returns: y (B, channels) and the next state.
        """
        c, d = self.read_out() if read_out is None else read_out
        new = u - (state * self.denominators()).sum(axis=-1)
        return (state * c).sum(axis=-1) + d * u, concat([expand_dims(new, -1), state[..., :-1]], axis=-1)

    def initial_state(self, batch: int, dtype="float32") -> EmberTensor:
        """A zero state (batch, channels, N)."""
        return zeros((batch, self.config.channels, self.config.d_state), dtype, like=self.h_0)
