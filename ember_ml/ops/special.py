"""The gamma function and its logarithmic derivatives.

Where an engine has none, they are computed from Stirling's series: the argument is brought to at least 8 by the recurrence, and a
negative one is reflected first. Source: DLMF 5.5, 5.11; Abramowitz and Stegun 1964, 6.3, 6.4.
"""

from __future__ import annotations

import math

from ember_ml.ops.declare import op
from ember_ml.ops.elementwise import abs, cos, exp, floor, log, logical_and, sin, where
from ember_ml.tensor import EmberTensor

#: B_{2n} / (2n (2n - 1)), B_{2n} / 2n and B_{2n}, n = 1, 2, ...: to float64's last digits from 8 on
_BERNOULLI = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6)
_SHIFT = 8


def _series(inverse, factors):
    """c_1 + c_2 u + c_3 u^2 + ... with u = inverse^2."""
    u = inverse * inverse
    out = u * factors[-1]
    for c in factors[-2:0:-1]:
        out = (out + c) * u
    return out + factors[0]


def _wide(x):
    return x if x.dtype.bits >= 32 else x.astype("float32")


def _turned(x):
    """(x reflected to at least 1/2, whether it was)."""
    negative = x < 0.5
    return where(negative, 1.0 - x, x), negative


def _from_pole(x):
    """The distance to the nearest integer, where sin(pi x) = +-sin(pi d) is exact."""
    return x - floor(x + 0.5)


@op(rule="float", vjp=(lambda g, _y, x: g * digamma(x),), owns_gradient=True)
def lgamma(x):
    """log |Gamma(x)|, elementwise; infinite at 0, -1, -2, ... Real x."""
    kind, x = x.dtype, _wide(x)
    z, negative = _turned(x)
    product = z
    for i in range(1, _SHIFT):
        product = product * (z + float(i))
    w = z + float(_SHIFT)
    factors = tuple(b / ((2 * n + 2) * (2 * n + 1)) for n, b in enumerate(_BERNOULLI))
    y = (w - 0.5) * log(w) - w + 0.5 * math.log(2.0 * math.pi) + _series(1.0 / w, factors) / w
    # of larger z the series needs no help, and eight factors of up to 72 stay far below float32's largest number
    large = z > 64.0
    direct = (z - 0.5) * log(z) - z + 0.5 * math.log(2.0 * math.pi) + _series(1.0 / z, factors) / z
    y = where(large, direct, y - log(where(large, 1.0, product)))
    mirrored = math.log(math.pi) - log(abs(sin(where(negative, math.pi * _from_pole(x), 1.0)))) - y
    return where(negative, mirrored, y).astype(kind)


@op(rule="float", vjp=(lambda g, _y, x: g * trigamma(x),), owns_gradient=True)
def digamma(x):
    """d/dx log Gamma(x), elementwise; no number at 0, -1, -2, ... Real x."""
    kind, x = x.dtype, _wide(x)
    z, negative = _turned(x)
    below = 1.0 / z
    for i in range(1, _SHIFT):
        below = below + 1.0 / (z + float(i))
    w = z + float(_SHIFT)
    inverse = 1.0 / w
    y = log(w) - 0.5 * inverse - inverse * inverse * _series(inverse, tuple(b / (2 * n + 2) for n, b in enumerate(_BERNOULLI))) - below
    angle = math.pi * _from_pole(x)
    return where(negative, y - math.pi * cos(angle) / sin(where(negative, angle, 1.0)), y).astype(kind)


@op(rule="float")
def trigamma(x):
    """d^2/dx^2 log Gamma(x), elementwise; infinite at 0, -1, -2, ... Real x."""
    kind, x = x.dtype, _wide(x)
    z, negative = _turned(x)
    below = 1.0 / (z * z)
    for i in range(1, _SHIFT):
        below = below + 1.0 / ((z + float(i)) * (z + float(i)))
    w = z + float(_SHIFT)
    inverse = 1.0 / w
    y = inverse + 0.5 * inverse * inverse + inverse * inverse * inverse * _series(inverse, _BERNOULLI) + below
    s = sin(where(negative, math.pi * _from_pole(x), 1.0)) * (1.0 / math.pi)
    return where(negative, 1.0 / (s * s) - y, y).astype(kind)


def gamma(x: EmberTensor) -> EmberTensor:
    """Gamma(x), elementwise, as the exponential of its logarithm: relative error log Gamma(x) times that of one rounding. Real x."""
    odd = logical_and(x < 0, floor(x) - 2.0 * floor(0.5 * floor(x)) == 1.0)
    return where(odd, -1.0, 1.0).astype(x.dtype) * exp(lgamma(x))


def beta(a: EmberTensor, b: EmberTensor) -> EmberTensor:
    """B(a, b) = Gamma(a) Gamma(b) / Gamma(a + b), elementwise, for positive a and b."""
    return exp(lgamma(a) + lgamma(b) - lgamma(a + b))
