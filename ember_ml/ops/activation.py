"""Activation functions and softmax."""

from __future__ import annotations

import math

from ember_ml.ops.declare import op
from ember_ml.ops.elementwise import abs, erf, exp, expm1, log1p, maximum, minimum, tanh, where
from ember_ml.ops.reduce import logsumexp
from ember_ml.ops.reduce import max as largest
from ember_ml.ops.reduce import sum as total
from ember_ml.ops.shape import split


@op(rule="float", vjp=(lambda g, y, _x: g * (y * (1.0 - y)),))
def sigmoid(x):
    """1 / (1 + exp(-x)), elementwise."""
    return 0.5 * (tanh(0.5 * x) + 1.0)


@op(vjp=(lambda g, y, _x: where(y > 0, g, 0.0),))
def relu(x):
    """max(x, 0), elementwise. Gradient at 0: 0."""
    return maximum(x, 0)


@op(rule="float", vjp=(lambda g, _y, x: g * silu_slope(x),))
def silu(x):
    """x sigmoid(x), elementwise."""
    return x * sigmoid(x)


def silu_slope(x):
    s = sigmoid(x)
    return s * (1.0 + x * (1.0 - s))


@op(rule="float", vjp=(lambda g, _y, x: g * gelu_slope(x),))
def gelu(x):
    """x Phi(x) with the normal distribution's Phi(x) = (1 + erf(x / sqrt 2)) / 2, elementwise."""
    return 0.5 * x * (1.0 + erf(x * math.sqrt(0.5)))


def gelu_slope(x):
    """The derivative of `gelu`: Phi(x) + x phi(x)."""
    return 0.5 * (1.0 + erf(x * math.sqrt(0.5))) + x * exp(-0.5 * x * x) * (1.0 / math.sqrt(2.0 * math.pi))


_C = math.sqrt(2.0 / math.pi)


@op(rule="float", vjp=(lambda g, _y, x: g * _gelu_tanh_slope(x),))
def gelu_tanh(x):
    """x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), elementwise: the approximation of gelu that GPT-2 uses."""
    return 0.5 * x * (1.0 + tanh(x * (_C + (_C * 0.044715) * x * x)))


def _gelu_tanh_slope(x):
    square = x * x
    t = tanh(x * (_C + (_C * 0.044715) * square))
    return 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * (_C + (3 * _C * 0.044715) * square)


@op(rule="float", vjp=(lambda g, _y, x: g * sigmoid(x),))
def softplus(x):
    """log(1 + exp(x)), elementwise, without overflow."""
    return maximum(x, 0) + log1p(exp(-abs(x)))


@op(rule="float", vjp=(lambda g, y, _x, *, axis=-1: (g - total(g * y, axis=axis, keepdims=True)) * y,))
def softmax(x, *, axis=-1):
    """exp(x) / sum(exp(x)) along `axis`, computed after subtracting the largest element."""
    e = exp(x - largest(x, axis=axis, keepdims=True))
    return e / total(e, axis=axis, keepdims=True)


@op(rule="float", vjp=(lambda g, y, _x, *, axis=-1: g - exp(y) * total(g, axis=axis, keepdims=True),))
def log_softmax(x, *, axis=-1):
    """log(softmax(x)) along `axis`, without overflow or log of zero."""
    return x - logsumexp(x, axis=axis, keepdims=True)


def log_sigmoid(x):
    """log(1 / (1 + exp(-x))), elementwise, without overflow."""
    return -softplus(-x)


def relu_squared(x):
    """max(x, 0)^2, elementwise. Source: So et al. 2021, Primer."""
    y = relu(x)
    return y * y


def relu6(x):
    """min(max(x, 0), 6), elementwise."""
    return minimum(relu(x), 6.0)


def leaky_relu(x, slope: float = 0.01):
    """x where it is positive, else slope x, elementwise."""
    return where(x > 0, x, x * slope)


def elu(x, alpha: float = 1.0):
    """x where it is positive, else alpha (exp(x) - 1), elementwise. Source: Clevert et al. 2015."""
    return where(x > 0, x, expm1(minimum(x, 0.0)) * alpha)


def selu(x):
    """scale elu(x, alpha) with the two constants that keep mean 0 and variance 1. Source: Klambauer et al. 2017."""
    return elu(x, 1.6732632423543772) * 1.0507009873554805


def mish(x):
    """x tanh(softplus(x)), elementwise. Source: Misra 2019."""
    return x * tanh(softplus(x))


def hard_sigmoid(x):
    """min(max(x + 3, 0), 6) / 6, elementwise."""
    return relu6(x + 3.0) / 6.0


def hard_swish(x):
    """x hard_sigmoid(x), elementwise. Source: Howard et al. 2019, MobileNetV3."""
    return x * hard_sigmoid(x)


def softsign(x):
    """x / (1 + |x|), elementwise."""
    return x / (1.0 + abs(x))


def tanh_shrink(x):
    """x - tanh(x), elementwise."""
    return x - tanh(x)


def glu(x, axis: int = -1):
    """The first half along `axis` times the sigmoid of the second. Source: Dauphin et al. 2017."""
    first, second = split(x, 2, axis=axis)
    return first * sigmoid(second)


#: activations by the names that configurations use; "gelu" is the exact one, "gelu_tanh" GPT-2's approximation
ACTIVATIONS = {"identity": lambda x: x, "relu": relu, "gelu": gelu, "gelu_tanh": gelu_tanh, "silu": silu,
               "sigmoid": sigmoid, "tanh": tanh, "relu_squared": relu_squared, "elu": elu, "selu": selu, "mish": mish,
               "leaky_relu": leaky_relu, "hard_swish": hard_swish, "softsign": softsign}
