"""Rotary positions: queries and keys turn with their position, so that their products know the distance alone."""

from __future__ import annotations

import math
from typing import Annotated

import pydantic

from ember_ml.errors import ConfigError
from ember_ml.ops import rope
from ember_ml.ops.creation import constant
from ember_ml.registry import Size, config
from ember_ml.tensor import EmberTensor


@config
class Llama3Config:
    """Slower turns for the pairs that take long, for contexts longer than the `original` number of positions.

    Pairs that turn less than low_freq_factor times in `original` positions turn `factor` times slower, those that turn more than
    high_freq_factor times as before, and between them linearly by the number of turns.
    """

    factor: Annotated[float, pydantic.Field(gt=0.0)] = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original: Size = 8192


@config
class RoPEConfig:
    """How positions turn.

    Args:
        base: channel pair i turns by base^(-2i / dims) radians a position.
        dims: channels of each head that turn, the first ones, even; None for all.
        interleaved: pairs are neighbours (0, 1), (2, 3), ... and not channel i with channel i + dims / 2.
        scale: positions are divided by it (linear interpolation, for contexts longer than those trained on).
        llama3: Llama 3.1's way to longer contexts, None for none.
        rates: radians a position for each pair, in place of those of the base.
    """

    base: Annotated[float, pydantic.Field(gt=1.0)] = 10000.0
    dims: Annotated[int, pydantic.Field(ge=2, multiple_of=2)] | None = None
    interleaved: bool = False
    scale: Annotated[float, pydantic.Field(gt=0.0)] = 1.0
    rates: tuple[float, ...] | None = None
    llama3: Llama3Config | None = None


def rotate(x: EmberTensor, positions: EmberTensor, c: RoPEConfig) -> EmberTensor:
    """x (B, H, L, width) turned by its positions, (B, L) or (1, L); the angles are formed in float32 at least. See `ember_ml.ops.rope`."""
    wide = "float64" if x.dtype.name == "float64" else "float32"
    rates = constant(_signed_rates, c, (c.dims or x.shape[-1]) // 2, dtype=wide, like=x)
    return rope(x, positions, rates, interleaved=c.interleaved)


def _signed_rates(c: RoPEConfig, half: int) -> list[float]:
    """Radians a position for each channel, the first of a pair with a minus sign. In Python's double precision: far positions magnify an
    error."""
    rates = c.rates or [_slowed(c.base ** (-i / half), c.llama3) for i in range(half)]
    if len(rates) != half:
        raise ConfigError(f"rope: expected {half} rates, one for each pair of the {2 * half} channels that turn, received {len(rates)}")
    rates = [r / c.scale for r in rates]
    return [r for rate in rates for r in (-rate, rate)] if c.interleaved else [*(-r for r in rates), *rates]


def _slowed(rate: float, f: Llama3Config | None) -> float:
    if f is None:
        return rate
    turned = rate * f.original / (2.0 * math.pi)
    kept = min(1.0, max(0.0, (turned - f.low_freq_factor) / (f.high_freq_factor - f.low_freq_factor)))
    return rate * (kept + (1.0 - kept) / f.factor)
