"""Trigonometric and hyperbolic functions and their inverses, elementwise, in radians. sin, cos, tanh, atan2 are in `elementwise`."""

from __future__ import annotations

from ember_ml.ops.declare import op
from ember_ml.ops.elementwise import conj, rsqrt, sqrt, where


@op(rule="float", vjp=(lambda g, y, _x: g * conj(y * y + 1.0),))
def tan(x):
    """Tangent, elementwise."""
    ...


@op(rule="float", vjp=(lambda g, _y, x: g * conj(rsqrt(1.0 - x * x)),))
def asin(x):
    """Angle in [-pi/2, pi/2] whose sine is x, elementwise; nan for real x outside [-1, 1]."""
    ...


@op(rule="float", vjp=(lambda g, _y, x: -(g * conj(rsqrt(1.0 - x * x))),))
def acos(x):
    """Angle in [0, pi] whose cosine is x, elementwise; nan for real x outside [-1, 1]."""
    ...


@op(rule="float", vjp=(lambda g, _y, x: g / conj(x * x + 1.0),))
def atan(x):
    """Angle in [-pi/2, pi/2] whose tangent is x, elementwise."""
    ...


@op(rule="float", vjp=(lambda g, _y, x: g * conj(cosh(x)),))
def sinh(x):
    """Hyperbolic sine (e^x - e^-x) / 2, elementwise."""
    ...


@op(rule="float", vjp=(lambda g, _y, x: g * conj(sinh(x)),))
def cosh(x):
    """Hyperbolic cosine (e^x + e^-x) / 2, elementwise."""
    ...


@op(rule="float", vjp=(lambda g, _y, x: g * conj(rsqrt(x * x + 1.0)),))
def asinh(x):
    """Inverse of the hyperbolic sine, elementwise."""
    ...


@op(rule="float", vjp=(lambda g, _y, x: g / conj(sqrt(x - 1.0) * sqrt(x + 1.0)),))
def acosh(x):
    """Inverse of the hyperbolic cosine, at least 0, elementwise; nan for real x below 1."""
    ...


@op(rule="float", vjp=(lambda g, _y, x: g / conj(1.0 - x * x),))
def atanh(x):
    """Inverse of the hyperbolic tangent, elementwise; nan for real x outside [-1, 1]."""
    ...


def _part(g, y, x):
    """g x / y, and 0 at the origin, where the length has no slope."""
    return g * (x / where(y == 0, 1.0, y))


@op(rule="float_promote", vjp=(lambda g, y, a, _b: _part(g, y, a), lambda g, y, _a, b: _part(g, y, b)))
def hypot(x, y):
    """sqrt(x^2 + y^2) of real numbers, elementwise, without overflow in between. Gradient at the origin: 0."""
    ...
