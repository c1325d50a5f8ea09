"""Distributions on keyed bits: one key gives one result on every engine.

Bernoulli draws, integers, permutations and Poisson counts are equal to the bit on all engines, for one rate; numbers that go through a
logarithm or erfinv agree to 1e-6 of their size, which engines round differently.
"""

from __future__ import annotations

import math

from ember_ml.errors import ShapeError
from ember_ml.ops.creation import check_shape, full, tensor
from ember_ml.ops.elementwise import abs, clip, erfinv, exp, log, log1p, logical_and, logical_not, logical_or, maximum, sign, sqrt, where
from ember_ml.ops.random.keys import BELOW_ONE, bits, check_key, split, uniform
from ember_ml.ops.reduce import argmax
from ember_ml.ops.reduce import sum as total
from ember_ml.ops.search import searchsorted
from ember_ml.ops.shape import broadcast_to, cut, reshape
from ember_ml.ops.sort import argsort, topk
from ember_ml.tensor import EmberTensor
from ember_ml.tensor.common import dtypes as dt

#: rounds of a rejection that succeeds with probability 0.95 and more each time: all fail once in 10^10 draws
_ROUNDS = 8


def normal(key: EmberTensor, shape=(), mean: float = 0.0, std: float = 1.0, dtype=dt.float32) -> EmberTensor:
    """Normal numbers: mean + std * sqrt(2) * erfinv(u), u uniform in (-1, 1)."""
    low = -1.0 + 2.0 ** -24
    u = clip(uniform(key, shape) * (1.0 - low) + low, min=low, max=BELOW_ONE)
    return (erfinv(u) * (math.sqrt(2.0) * std) + mean).astype(dtype)


def bernoulli(key: EmberTensor, p: float, shape=()) -> EmberTensor:
    """bool, true with probability p. Raises ValueError for a number that is no probability."""
    if not isinstance(p, EmberTensor) and not 0.0 <= p <= 1.0:
        raise ValueError(f"random.bernoulli: expected a probability, 0 <= p <= 1, got {p}")
    return uniform(key, shape) < p


def randint(key: EmberTensor, shape, low: int, high: int, dtype=dt.int32) -> EmberTensor:
    """Integers low <= i < high; uniform up to a bias of (high - low) / 2^32."""
    if not low < high:
        raise ValueError(f"random.randint: expected low < high, got {low} and {high}")
    u = uniform(key, shape) * float(high - low)
    return (u.astype(dt.int32) + low).astype(dtype)


def permutation(key: EmberTensor, n: int) -> EmberTensor:
    """0 ... n-1 in random order, int32: the stable order of n random words."""
    return argsort(bits(key, (n,)).astype(dt.int64))


def categorical(key: EmberTensor, logits: EmberTensor) -> EmberTensor:
    """int32 draws from softmax(logits) over the last axis, by the Gumbel maximum: shape logits.shape[:-1]."""
    return argmax(logits + gumbel(key, logits.shape), axis=-1)


def truncated_normal(key: EmberTensor, shape=(), low: float = -2.0, high: float = 2.0, mean: float = 0.0, std: float = 1.0,
                     dtype=dt.float32) -> EmberTensor:
    """Normal numbers of mean 0 and standard deviation 1 under the condition low <= z <= high, times std, plus mean.

    By inversion of erf, whose tails float32 cannot tell apart: low below 4 and high above -4.
    """
    if not low < high or low > 4.0 or high < -4.0:
        raise ValueError(f"random.truncated_normal: expected low < high, low <= 4 and high >= -4, got {low} and {high}")
    below, above = (math.erf(z / math.sqrt(2.0)) for z in (low, high))
    u = clip(uniform(key, shape) * (above - below) + below, min=-BELOW_ONE, max=BELOW_ONE)
    return (clip(erfinv(u) * math.sqrt(2.0), min=low, max=high) * std + mean).astype(dtype)


def exponential(key: EmberTensor, shape=(), rate: float = 1.0, dtype=dt.float32) -> EmberTensor:
    """Waiting times of that rate: density rate e^{-rate x}, mean 1 / rate."""
    return (log1p(-uniform(key, shape)) * (-1.0 / rate)).astype(dtype)


def gumbel(key: EmberTensor, shape=(), dtype=dt.float32) -> EmberTensor:
    """Standard Gumbel numbers -log(-log u): logits plus these have their maximum where `categorical` draws."""
    return (-log(-log(uniform(key, shape) + 2.0 ** -33))).astype(dtype)


def laplace(key: EmberTensor, shape=(), mean: float = 0.0, scale: float = 1.0, dtype=dt.float32) -> EmberTensor:
    """Density e^{-|x - mean| / scale} / (2 scale)."""
    v = uniform(key, shape) - 0.5
    return (-sign(v) * log(maximum(1.0 - 2.0 * abs(v), 2.0 ** -24)) * scale + mean).astype(dtype)


def gamma(key: EmberTensor, alpha: float | EmberTensor, shape=None, dtype=dt.float32) -> EmberTensor:
    """Density x^{alpha - 1} e^{-x} / Gamma(alpha): mean and variance alpha. Divide by a rate, or multiply by a scale, for others.

    Args:
        alpha: positive; a tensor broadcasts to `shape`, by default its own.

    Engines may decide otherwise about one number in a million, where the rejection is a matter of rounding.
    Source: Marsaglia and Tsang 2000, A Simple Method for Generating Gamma Variables, with section 6 for alpha < 1.
    """
    shape = check_shape(shape if shape is not None else alpha.shape if isinstance(alpha, EmberTensor) else ())
    alpha = broadcast_to(alpha.astype(dt.float32), shape) if isinstance(alpha, EmberTensor) else full(shape, float(alpha), like=key)
    small = alpha < 1.0
    d = where(small, alpha + 1.0, alpha) - 1.0 / 3.0
    c = 1.0 / sqrt(9.0 * d)
    *tries, last = split(key, 2 * _ROUNDS + 1)
    found, out = None, d
    for a, b in zip(tries[::2], tries[1::2]):
        x = normal(a, shape)
        v = 1.0 + c * x
        v = v * v * v
        fits = logical_and(v > 0.0, log(uniform(b, shape) + 2.0 ** -33) < 0.5 * x * x + d - d * v + d * log(where(v > 0.0, v, 1.0)))
        out = where(fits if found is None else logical_and(fits, logical_not(found)), d * v, out)
        found = fits if found is None else logical_or(fits, found)
    boost = exp(log(uniform(last, shape) + 2.0 ** -33) / alpha)
    return where(small, out * boost, out).astype(dtype)


def beta(key: EmberTensor, a: float | EmberTensor, b: float | EmberTensor, shape=None, dtype=dt.float32) -> EmberTensor:
    """Density x^{a-1} (1-x)^{b-1} / B(a, b) on [0, 1], as X / (X + Y) of two gamma numbers; arguments as in `gamma`."""
    first, second = split(key, 2)
    x, y = gamma(first, a, shape), gamma(second, b, shape)
    return (x / maximum(x + y, 2.0 ** -126)).astype(dtype)


def dirichlet(key: EmberTensor, alpha: EmberTensor, shape=(), dtype=dt.float32) -> EmberTensor:
    """Probabilities over the last axis of alpha (..., K): (*shape, ..., K), density proportional to prod x_k^{alpha_k - 1}."""
    x = gamma(key, alpha, (*check_shape(shape), *alpha.shape))
    return (x / maximum(total(x, axis=-1, keepdims=True), 2.0 ** -126)).astype(dtype)


def poisson(key: EmberTensor, rate: float, shape=(), dtype=dt.int32) -> EmberTensor:
    """Counts k with probability rate^k e^{-rate} / k!, by inversion of the sums of these, which are made in float64.

    Raises ValueError unless 0 <= rate <= 10^5.
    """
    if not 0.0 <= rate <= 1e5:
        raise ValueError(f"random.poisson: expected a rate from 0 to 1e5, got {rate}; above, it is a normal number to within 0.3%")
    if rate == 0.0:
        return full(check_shape(shape), 0, dtype, like=key)
    last, sums, so_far = int(rate + 8.0 * math.sqrt(rate) + 20.0), [], 0.0
    for k in range(last):
        so_far += math.exp(k * math.log(rate) - rate - math.lgamma(k + 1.0))
        sums.append(so_far)
    return searchsorted(tensor(sums, dtype=dt.float32, like=key), uniform(key, shape), side="right").astype(dtype)


def choice(key: EmberTensor, n: int, shape=(), replace: bool = True, p: EmberTensor | None = None) -> EmberTensor:
    """int32 indices below n, all as likely or with probabilities p (n,); without replacement no index comes twice.

    Raises ShapeError where p is not (n,), or more than n are asked for without replacement.
    """
    check_key(key)
    shape = check_shape(shape)
    count = math.prod(shape)
    if p is not None and p.shape != (n,):
        raise ShapeError(f"random.choice: expected p of shape ({n},), got {p.shape}")
    if replace:
        return randint(key, shape, 0, n) if p is None else categorical(key, broadcast_to(log(p), (*shape, n)))
    if count > n:
        raise ShapeError(f"random.choice: expected at most {n} draws without replacement, got shape {shape}")
    if p is None or count == 0:
        return reshape(cut(permutation(key, n), 0, count, axis=0), shape)
    return reshape(topk(log(p) + gumbel(key, (n,)), count)[1], shape)     # Kool et al. 2019, Stochastic Beams, theorem 1
