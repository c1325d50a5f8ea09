"""The gamma function and its logarithmic derivatives, from their series. Source: DLMF 5.7.6, 5.15.1."""

from __future__ import annotations

import math

import numpy as np

from ember_ml import ops
from ember_ml.parity.cases.case import draws, row

real, ints = draws(11)
_TERMS = 500


def _each(fn):
    return np.vectorize(fn, otypes=[float])


def _digamma(x: float) -> float:
    """-gamma + sum over n of 1 / (n + 1) - 1 / (n + x), the rest of the sum as an integral."""
    rest = math.log((_TERMS + x - 0.5) / (_TERMS + 0.5)) + ((_TERMS + x - 0.5) ** -2 - (_TERMS + 0.5) ** -2) / 24.0
    return math.fsum([-np.euler_gamma, rest, *(s for n in range(_TERMS) for s in (1.0 / (n + 1), -1.0 / (n + x)))])


def _trigamma(x: float) -> float:
    """The sum over n of 1 / (n + x)^2, the rest of it as an integral."""
    m = _TERMS + x - 0.5
    return math.fsum([1.0 / m, -1.0 / (12.0 * m ** 3), *((n + x) ** -2 for n in range(_TERMS))])


_VALUES = np.array([0.07, 0.6, 1.3, 2.9, 6.4, -0.4, -1.7, -3.3])
row("lgamma", ops.lgamma, [_VALUES], _each(math.lgamma), empty=(0,), scalar=True)
row("lgamma", ops.lgamma, [np.array([11.5, 63.0, 65.0, 200.0, 3000.0])], _each(math.lgamma), label="large")
row("digamma", ops.digamma, [_VALUES], _each(_digamma), empty=(0,), scalar=True)
row("trigamma", ops.trigamma, [_VALUES[1:]], _each(_trigamma), empty=(0,), scalar=True)
row("gamma", ops.gamma, [_VALUES[1:5]], _each(math.gamma), empty=(0,), scalar=True)
row("gamma", ops.gamma, [_VALUES[5:]], _each(math.gamma), label="below zero")
row("beta", ops.beta, [_VALUES[:5], _VALUES[4::-1] + 0.1], _each(lambda a, b: math.gamma(a) * math.gamma(b) / math.gamma(a + b)), empty=(0, 1),
    scalar=True, slack=2)
