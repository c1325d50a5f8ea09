"""The implicit long filter of Hyena: a small network of the position, under an exponential window."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import pydantic

from ember_ml.errors import ShapeError
from ember_ml.nn.layers.channel_mixing.dense import Dense, DenseConfig
from ember_ml.nn.module import Module
from ember_ml.ops import abs, concat, cos, exp, expand_dims, linspace, ones, random, sin, swap_axes
from ember_ml.ops import sum as total
from ember_ml.registry import Size, config
from ember_ml.tensor import EmberTensor


@config
class HyenaFilterConfig:
    """Shape of the filter network.

    Args:
        channels: number of filters. l_max: longest sequence.
        width: hidden channels. depth: hidden layers after the first.
        features: of the position, odd: the time itself, then cosines and sines of (features - 1) / 2 frequencies.
        frequency: initial value of the sine activation's learned frequencies.
        shift: added to the window, so that the far past is never cut off whole.
        fast_decay, slow_decay, target: the window of the fastest channel falls to `target` after the share `fast_decay`
            of l_max, that of the slowest after `slow_decay`.
        learn_positions: train the position features.
        learn_decay: train the window's rates.
        window: False for filters without a window; shift, decays and target then have no effect.
        normalized: divide the filters at each time by the sum over channels of their absolute values.
        network: "sine", the network; "linear", one map of the position features; width, depth and frequency then have
            no effect.
    """

    channels: Size
    l_max: Size
    width: Size = 64
    depth: Annotated[int, pydantic.Field(ge=0, le=10_000)] = 2
    features: Size = 5
    frequency: float = 10.0
    shift: float = 0.05
    fast_decay: float = 0.3
    slow_decay: float = 1.5
    target: float = 0.01
    learn_positions: bool = False
    learn_decay: bool = False
    window: bool = True
    normalized: bool = False
    network: Literal["sine", "linear"] = "sine"


def position_features(l_max: int, features: int) -> tuple[EmberTensor, EmberTensor]:
    """(t, z): t (l_max,) from 0 to 1, and z (l_max, features) = [t, cos(f w), -sin(f w)] with w = 2 pi n / l_max.

    Frequencies f run from 1e-4 to bands - 1 in `bands` = (features - 1) / 2 steps.
    """
    if features < 3 or features % 2 == 0:
        raise ShapeError(f"hyena filter: expected an odd number of features, at least 3; got {features}")
    bands = (features - 1) // 2
    t = linspace(0.0, 1.0, l_max)
    turn = linspace(0.0, 2.0 * math.pi * (l_max - 1) / l_max, l_max)
    angle = expand_dims(turn, 1) * expand_dims(linspace(1e-4, bands - 1.0, bands), 0)
    return t, concat([expand_dims(t, 1), cos(angle), -sin(angle)], axis=1)


class HyenaFilter(Module):
    """k[c, t] = MLP(z_t)[c] * (exp(-t |delta_c|) + shift), with sine activations sin(freq * x) in the network.

    With `normalized`, k[c, t] / sum_c |k[c, t]| after that.

    Args:
        config: see HyenaFilterConfig. key: random key of the initial weights.

    Parameters: layers.{0..depth} (width, .) with bias, freq (width,) shared by all activations, out (channels, width);
    for the linear network only out (channels, features).
    Buffers: t (l_max,), z (l_max, features) and deltas (channels,); parameters where learned.

    Source: Poli et al. 2023, Hyena Hierarchy, section 3.3; Nguyen et al. 2023, HyenaDNA.
    """

    Config = HyenaFilterConfig

    def __init__(self, config: HyenaFilterConfig, key: EmberTensor | None = None):
        self.config = c = config
        keys = random.split(key if key is not None else random.next_key(), c.depth + 2)
        t, z = position_features(c.l_max, c.features)
        self.buffer("t", t)
        if c.learn_positions:
            self.z = z
        else:
            self.buffer("z", z)
        linear = c.network == "linear"
        self.layers = [] if linear else [Dense(DenseConfig(c.features if i == 0 else c.width, c.width), key=keys[i])
                                         for i in range(c.depth + 1)]
        if not linear:
            self.freq = ones((c.width,)) * c.frequency
        self.out = Dense(DenseConfig(c.features if linear else c.width, c.channels, bias=False), key=keys[-1])
        if c.window:
            deltas = linspace(math.log(c.target) / c.slow_decay, math.log(c.target) / c.fast_decay, c.channels)
            if c.learn_decay:
                self.deltas = deltas
            else:
                self.buffer("deltas", deltas)

    def forward(self, length: int | None = None) -> EmberTensor:
        """The filters (channels, length); None for l_max. Raises ShapeError beyond l_max."""
        length = length or self.config.l_max
        if length > self.config.l_max:
            raise ShapeError(f"hyena filter: expected a length of at most l_max = {self.config.l_max}, got {length}; "
                             "build the layer with a larger l_max")
        h, t = self.z[:length], self.t[:length]
        for layer in self.layers:
            h = sin(self.freq * layer(h))
        k = swap_axes(self.out(h))
        if self.config.window:
            k = k * (exp(expand_dims(abs(self.deltas), 1) * -expand_dims(t, 0)) + self.config.shift)
        return k / total(abs(k), axis=0, keepdims=True) if self.config.normalized else k
