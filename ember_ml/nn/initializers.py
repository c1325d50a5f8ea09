"""Initial values of parameters, from keys: the same key gives the same model on every engine.

Each takes a key and a shape and returns float32 on the key's engine.
"""

from __future__ import annotations

import math

from ember_ml.ops import random
from ember_ml.tensor import EmberTensor


def _fans(shape) -> tuple[int, int]:
    """(fan in, fan out) of a weight (d_out, d_in, ...taps)."""
    taps = math.prod(shape[2:])
    return (shape[1] if len(shape) > 1 else shape[0]) * taps, shape[0] * taps


def uniform(key: EmberTensor, shape, bound: float) -> EmberTensor:
    """Uniform in [-bound, bound)."""
    return random.uniform(key, shape, -bound, bound)


def normal(key: EmberTensor, shape, std: float) -> EmberTensor:
    """Normal with mean 0 and standard deviation std."""
    return random.normal(key, shape, 0.0, std)


def fan_in_uniform(key: EmberTensor, shape, fan_in: int | None = None) -> EmberTensor:
    """Uniform in +-1/sqrt(fan_in), the default of torch's linear and convolution layers. He et al. 2015 with a = sqrt 5."""
    return uniform(key, shape, 1.0 / math.sqrt(fan_in or _fans(shape)[0]))


def glorot_uniform(key: EmberTensor, shape) -> EmberTensor:
    """Uniform in +-sqrt(6 / (fan_in + fan_out)). Glorot and Bengio 2010, eq. 16."""
    fan_in, fan_out = _fans(shape)
    return uniform(key, shape, math.sqrt(6.0 / (fan_in + fan_out)))


def he_normal(key: EmberTensor, shape) -> EmberTensor:
    """Normal with standard deviation sqrt(2 / fan_in), for relu networks. He et al. 2015, eq. 10."""
    return normal(key, shape, math.sqrt(2.0 / _fans(shape)[0]))
