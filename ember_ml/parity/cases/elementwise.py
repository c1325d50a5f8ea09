"""Arithmetic, functions of one number, comparisons."""

from __future__ import annotations

import math

import numpy as np

from ember_ml import ops
from ember_ml.parity.cases.case import WIDENED, draws, row

real, ints = draws(1)
ERF = np.vectorize(math.erf, otypes=[float])
X, Y, P = real(3, 4), real(3, 4) + 0.013, real(3, 4, low=0.3, high=2.5)


def _kinds(of, *numbers):
    """Which are infinite, nan, negative: what tells numbers apart that have no difference."""
    return of.stack([test(x) for x in numbers for test in (of.isinf, of.isnan, of.signbit)])


for _name, _expect, _also in [("add", np.add, "ic"), ("subtract", np.subtract, "ic"), ("multiply", np.multiply, "ic"),
                              ("maximum", np.maximum, "i"), ("minimum", np.minimum, "i")]:
    row(_name, getattr(ops, _name), [X, Y], _expect, also=_also, empty=(0, 1), scalar=True)
    row(_name, getattr(ops, _name), [X, real(4, low=-1.7, high=1.9)], _expect, label="broadcast", empty=(0,))
    row(_name, getattr(ops, _name), [X, real(3, 1, low=-0.8, high=1.3)], _expect, label="broadcast last", empty=(0, 1))
row("atan2", ops.atan2, [X, Y], np.arctan2, empty=(0, 1), scalar=True)
row("atan2", ops.atan2, [X, real(4, low=-1.7, high=1.9)], np.arctan2, label="broadcast")
row("divide", ops.divide, [X, P], np.divide, also="ic", empty=(0, 1), scalar=True)
row("divide", lambda x: 2.0 / x, [P], lambda x: 2.0 / x, label="number first")
row("pow", ops.pow, [P, Y], np.power, also="c", empty=(0, 1), scalar=True)
row("pow", lambda x: x ** 3, [X], lambda x: x ** 3, label="number second", also="ic")
row("floor_divide", ops.floor_divide, [X, P], np.floor_divide, (), also="i", empty=(0, 1), scalar=True)
row("remainder", ops.remainder, [real(3, 4, low=0.11, high=2.9), real(3, 4, low=3.1, high=4.0)], np.remainder, empty=(0, 1), scalar=True)
row("remainder", ops.remainder, [np.array([-2.6, 7.3, -0.4]), np.array([1.5, 2.2, -3.0])], np.remainder, label="signs")
for _name, _x, _expect, _also in [
        ("negative", X, np.negative, "ic"), ("abs", X, np.abs, "ic"), ("square", X, np.square, "ic"), ("exp", X, np.exp, "c"),
        ("exp2", X, np.exp2, ""), ("expm1", X, np.expm1, ""), ("sin", X, np.sin, "c"), ("cos", X, np.cos, "c"), ("tanh", X, np.tanh, "c"),
        ("sqrt", P, np.sqrt, "c"), ("log", P, np.log, "c"), ("log1p", P, np.log1p, ""), ("rsqrt", P, lambda x: x ** -0.5, "c"),
        ("erf", X, ERF, ""), ("conj", X, np.conj, "ic"), ("real", X, np.real, "c"),
        ("sigmoid", X, lambda x: 1 / (1 + np.exp(-x)), ""), ("relu", X + 0.01, lambda x: np.maximum(x, 0), "i"),
        ("silu", X, lambda x: x / (1 + np.exp(-x)), ""), ("softplus", X, lambda x: np.log1p(np.exp(x)), ""),
        ("gelu", X, lambda x: 0.5 * x * (1 + ERF(x / math.sqrt(2))), ""),
        ("gelu_tanh", X, lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3))), "")]:
    row(_name, getattr(ops, _name), [_x], _expect, also=_also, empty=(0,), scalar=True)
row("erfinv", lambda x: ops.erf(ops.erfinv(x)), [real(7, low=-0.99, high=0.99)], lambda x: x, label="inverse of erf", empty=(0,), scalar=True)
for _name, _expect, _also in [("sign", np.sign, "i"), ("floor", np.floor, ""), ("round", np.round, ""), ("isfinite", np.isfinite, "ic")]:
    row(_name, getattr(ops, _name), [X], _expect, (), also=_also, empty=(0,), scalar=True)
row("imag", ops.imag, [X + 1j * Y], np.imag, empty=(0,), scalar=True)
row("complex", ops.complex, [X, Y], lambda x, y: x + 1j * y, empty=(0, 1), scalar=True, single="no engine has complex numbers of half precision")
row("complex", lambda x, y: _kinds(ops, ops.real(ops.complex(x, y)), ops.imag(ops.complex(x, y))),
    [np.array([0.5, np.inf, -np.inf, np.nan, 1.0, -0.0]), np.array([np.inf, 2.0, -np.inf, 1.0, -0.0, np.nan])],
    lambda x, y: _kinds(np, x, y), (), label="not finite", single="no engine has complex numbers of half precision")
for _name, _expect, _also in [("equal", np.equal, "ic"), ("not_equal", np.not_equal, "ic"), ("less", np.less, "i"),
                              ("less_equal", np.less_equal, "i"), ("greater", np.greater, "i"), ("greater_equal", np.greater_equal, "i")]:
    row(_name, getattr(ops, _name), [np.array([0.5, 1.5, -2.0, 3.0]), np.array([0.5, 2.0, -3.0, 3.0])], _expect, (), also=_also,
        empty=(0, 1), scalar=True)
    row(_name, getattr(ops, _name), [ints(3, 4), ints(4)], _expect, (), label="broadcast", empty=(0,))
for _name, _expect in {"logical_and": np.logical_and, "logical_or": np.logical_or}.items():
    row(_name, getattr(ops, _name), [ints(3, 4) > 1, ints(4) > 2], _expect, (), empty=(0,), scalar=False)
row("logical_not", ops.logical_not, [ints(5) > 1], np.logical_not, (), empty=(0,), scalar=True)
row("where", ops.where, [ints(3, 4) > 2, X, Y], np.where, also="ic", empty=(0, 1, 2), scalar=True)
row("where", lambda c, x: ops.where(c, x, 0.0), [ints(3, 4) > 2, X], lambda c, x: np.where(c, x, 0.0), label="number", empty=(0, 1))
row("clip", lambda x: ops.clip(x, min=-0.9, max=1.1), [X], lambda x: np.clip(x, -0.9, 1.1), empty=(0,), scalar=True)
row("astype", lambda x: x.astype("float32") * 1.0, [X], lambda x: x, empty=(0,), scalar=True,
    result={**WIDENED, "float64": "float32"})


def _elu(x, alpha=1.0):
    return np.where(x > 0, x, alpha * np.expm1(x))


for _name, _expect in {
        "log_sigmoid": lambda x: -np.log1p(np.exp(-x)), "relu_squared": lambda x: np.maximum(x, 0) ** 2, "relu6": lambda x: np.clip(x, 0, 6),
        "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x), "elu": _elu, "selu": lambda x: 1.0507009873554805 * _elu(x, 1.6732632423543772),
        "mish": lambda x: x * np.tanh(np.log1p(np.exp(x))), "hard_sigmoid": lambda x: np.clip(x + 3, 0, 6) / 6,
        "hard_swish": lambda x: x * np.clip(x + 3, 0, 6) / 6, "softsign": lambda x: x / (1 + np.abs(x)), "tanh_shrink": lambda x: x - np.tanh(x),
}.items():
    row(_name, getattr(ops, _name), [3.7 * X + 0.021], _expect, empty=(0,), scalar=True)
row("softplus", ops.softplus, [np.array([-9.0, -30.0, -60.0])], lambda x: np.log1p(np.exp(x)), (), label="far below zero",
    single="it comes near float16's smallest numbers")
row("glu", ops.glu, [real(3, 6)], lambda x: x[:, :3] / (1 + np.exp(-x[:, 3:])), empty=(0,))
