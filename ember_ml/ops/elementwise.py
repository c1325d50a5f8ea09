"""Elementwise arithmetic and functions. Shapes broadcast; operands are tensors or Python numbers."""

from __future__ import annotations

import math

from ember_ml.ops.declare import op
from ember_ml.ops.dispatch import CONSTANT
from ember_ml.tensor import EmberTensor
from ember_ml.tensor.common import dtypes as dt


def _c(x):
    """Complex conjugate for the rules below, where x may be a number and is real most of the time."""
    if isinstance(x, EmberTensor):
        return conj(x) if x.dtype.kind == "complex" else x
    return x.conjugate()


def _log(x):
    return log(x) if isinstance(x, EmberTensor) else math.log(x)


@op(rule="promote", operator="__add__", reflected="__radd__", vjp=(lambda g, _y, _a, _b: g, lambda g, _y, _a, _b: g))
def add(x, y):
    """x + y, elementwise, in their common dtype."""
    ...


@op(rule="promote", operator="__sub__", reflected="__rsub__", vjp=(lambda g, _y, _a, _b: g, lambda g, _y, _a, _b: -g))
def subtract(x, y):
    """x - y, elementwise, in their common dtype."""
    ...


@op(rule="promote", operator="__mul__", reflected="__rmul__",
    vjp=(lambda g, _y, _a, b: g * _c(b), lambda g, _y, a, _b: g * _c(a)))
def multiply(x, y):
    """x * y, elementwise, in their common dtype."""
    ...


@op(rule="float_promote", operator="__truediv__", reflected="__rtruediv__",
    vjp=(lambda g, _y, _a, b: g / _c(b), lambda g, y, _a, b: -(g * _c(y / b))))
def divide(x, y):
    """x / y, elementwise; integers are divided as float32."""
    ...


@op(rule="promote", operator="__floordiv__", reflected="__rfloordiv__", vjp=CONSTANT)
def floor_divide(x, y):
    """The largest integer not above x / y, elementwise, in the common dtype."""
    ...


@op(rule="promote", operator="__mod__", reflected="__rmod__",
    vjp=(lambda g, _y, _a, _b: g, lambda g, _y, a, b: -(g * floor_divide(a, b))))
def remainder(x, y):
    """x - y * floor_divide(x, y), elementwise: it has the sign of y."""
    ...


@op(rule="promote", operator="__pow__", reflected="__rpow__",
    vjp=(lambda g, _y, a, b: g * _c(b * a ** (b - 1)), lambda g, y, a, _b: g * _c(y * _log(a))))
def pow(x, y):  # noqa: A001 - the standard's name
    """x ** y, elementwise, in their common dtype."""
    ...


@op(rule="promote", vjp=(lambda g, _y, a, b: g * _share(a, b), lambda g, _y, a, b: g * _share(b, a)))
def maximum(x, y):
    """The larger of x and y, elementwise. Gradient at a tie: half to each."""
    ...


@op(rule="promote", vjp=(lambda g, _y, a, b: g * _share(b, a), lambda g, _y, a, b: g * _share(a, b)))
def minimum(x, y):
    """The smaller of x and y, elementwise. Gradient at a tie: half to each."""
    ...


def _share(a, b):
    """1 where a > b, 1/2 where equal, 0 elsewhere, in float32: the part of a maximum's gradient that a gets."""
    return (a > b).astype("float32") + 0.5 * (a == b).astype("float32")


@op(operator="__neg__", vjp=(lambda g, _y, _x: -g,))
def negative(x):
    """-x, elementwise."""
    ...


@op(operator="__pos__", vjp=(lambda g, _y, _x: g,))
def positive(x):
    """x itself, elementwise."""
    return x


@op(operator="__abs__", method="abs", vjp=(lambda g, _y, x: _abs_grad(g, x),))
def abs(x):  # noqa: A001 - the standard's name
    """|x|, elementwise; real for complex x. Gradient at 0: 0."""
    ...


def _abs_grad(g, x):
    if x.dtype.kind != "complex":
        return g * sign(x)
    size = abs(x)
    return g * x / (size + (size == 0).astype(size.dtype))


@op(vjp=CONSTANT)
def sign(x):
    """-1, 0 or 1 by the sign of x, elementwise, in x's dtype."""
    ...


@op(vjp=(lambda g, _y, x: 2.0 * g * _c(x),))
def square(x):
    """x * x, elementwise."""
    return x * x


@op(rule="float", vjp=(lambda g, y, _x: g * _c(0.5 / y),))
def sqrt(x):
    """Square root, elementwise; nan for negative real x."""
    ...


@op(rule="float", vjp=(lambda g, y, _x: g * _c(-0.5 * y * y * y),))
def rsqrt(x):
    """1 / sqrt(x), elementwise."""
    return 1.0 / sqrt(x)


@op(rule="float", vjp=(lambda g, y, _x: -(g * _c(y * y)),))
def reciprocal(x):
    """1 / x, elementwise."""
    return 1.0 / x


@op(rule="float", vjp=(lambda g, y, _x: g * _c(y),))
def exp(x):
    """e ** x, elementwise."""
    ...


@op(rule="float", vjp=(lambda g, y, _x: g * (y * math.log(2.0)),))
def exp2(x):
    """2 ** x of real numbers, elementwise; the quicker base on most machines, with log2(e) taken into x beforehand."""
    ...


@op(rule="float", vjp=(lambda g, y, _x: g * _c(y + 1.0),))
def expm1(x):
    """e ** x - 1, elementwise, exact near 0."""
    ...


@op(rule="float", vjp=(lambda g, _y, x: g / _c(x),))
def log(x):
    """Natural logarithm, elementwise."""
    ...


@op(rule="float", vjp=(lambda g, _y, x: g / _c(x + 1.0),))
def log1p(x):
    """log(1 + x), elementwise, exact near 0."""
    ...


@op(rule="float", vjp=(lambda g, _y, x: g / _c(x * math.log(2.0)),))
def log2(x):
    """Logarithm to base 2, elementwise."""
    ...


@op(rule="float", vjp=(lambda g, _y, x: g / _c(x * math.log(10.0)),))
def log10(x):
    """Logarithm to base 10, elementwise."""
    ...


@op(rule="float_promote", vjp=(lambda g, y, a, _b: g * exp(a - _finite(y)), lambda g, y, _a, b: g * exp(b - _finite(y))))
def logaddexp(x, y):
    """log(e^x + e^y) of real numbers, elementwise, without overflow in between."""
    ...


def _finite(x):
    """Infinities as 0, so that nothing is taken from itself."""
    return where(isfinite(x), x, 0.0)


@op(rule="float", vjp=(lambda g, _y, x: g * _c(cos(x)),))
def sin(x):
    """Sine of x in radians, elementwise."""
    ...


@op(rule="float_promote", vjp=(lambda g, _y, y, x: g * (x / (x * x + y * y)), lambda g, _y, y, x: -(g * (y / (x * x + y * y)))))
def atan2(y, x):
    """Angle of the point (x, y) in radians, in [-pi, pi], elementwise."""
    ...


@op(rule="float", vjp=(lambda g, _y, x: -(g * _c(sin(x))),))
def cos(x):
    """Cosine of x in radians, elementwise."""
    ...


@op(rule="float", vjp=(lambda g, y, _x: g * _c(1.0 - y * y),))
def tanh(x):
    """Hyperbolic tangent, elementwise."""
    ...


@op(rule="float", vjp=(lambda g, _y, x: g * (2.0 / math.sqrt(math.pi)) * exp(-(x * x)),))
def erf(x):
    """Error function 2/sqrt(pi) * integral of exp(-t^2) from 0 to x, elementwise. Real x."""
    ...


@op(rule="float", vjp=(lambda g, y, _x: g * (0.5 * math.sqrt(math.pi)) * exp(y * y),))
def erfinv(x):
    """Inverse of the error function, elementwise, for -1 < x < 1."""
    ...


@op(vjp=CONSTANT)
def floor(x):
    """The largest integer not above x, elementwise, in x's dtype."""
    ...


@op(vjp=CONSTANT)
def ceil(x):
    """The smallest integer not below x, elementwise, in x's dtype."""
    ...


@op(vjp=CONSTANT)
def trunc(x):
    """The nearest integer towards zero, elementwise, in x's dtype."""
    ...


@op(vjp=CONSTANT)
def round(x):  # noqa: A001 - the standard's name
    """The nearest integer, halves to the even one, elementwise, in x's dtype."""
    ...


@op(vjp=lambda g, _y, x, min=None, max=None: _clip_grad(g, x, min, max))
def clip(x, min=None, max=None):  # noqa: A002 - the standard's names
    """x brought into [min, max], numbers or tensors that broadcast, None for no bound; in x's dtype.

    Gradient 1 inside and at the bounds; a bound that is a tensor gets the rest.
    """
    y = x
    if min is not None:
        y = maximum(y, min)
    if max is not None:
        y = minimum(y, max)
    return y if y.dtype is x.dtype else y.astype(x.dtype)


def _clip_grad(g, x, low, high):
    inside, to_low, to_high = g, None, None
    if low is not None:
        under = x < low
        inside, to_low, x = where(under, 0.0, inside), where(under, g, 0.0), maximum(x, low)
    if high is not None:
        over = x > high
        inside, to_high = where(over, 0.0, inside), where(over, g, 0.0)
        to_low = None if to_low is None else where(over, 0.0, to_low)
    return inside, to_low, to_high


@op(vjp=(lambda g, _y, _x: conj(g),), method=True)
def conj(x):
    """Complex conjugate, elementwise; x itself if it is real."""
    ...


@op(vjp=(lambda g, _y, x: g.astype(x.dtype),), method=True)
def real(x):
    """Real part, elementwise, as a real tensor; x itself if it is real."""
    ...


@op(vjp=(lambda g, _y, x: g.astype(x.dtype) * 1j,), method=True)
def imag(x):
    """Imaginary part of a complex x, elementwise, as a real tensor."""
    ...


@op(rule="promote", vjp=(lambda g, _y, _a, _b: real(g), lambda g, _y, _a, _b: imag(g)))
def complex(x, y):  # noqa: A001 - the field's name for it
    """x + i y of two real tensors, elementwise: complex64, or complex128 for float64."""
    ...


@op(rule="promote_rest",
    vjp=(None, lambda g, _y, c, _a, _b: where(c, g, 0.0), lambda g, _y, c, _a, _b: where(c, 0.0, g)))
def where(condition, x, y):
    """x where condition, a tensor of bools, holds, else y, elementwise; x and y in their common dtype, either may be a number.

    Gradients pass only where the value was chosen, so an infinite value that was not chosen does no harm.
    """
    ...


def _compare(name: str, operator: str, sign_text: str):
    def body(x, y):
        ...
    body.__name__ = name
    body.__doc__ = f"x {sign_text} y, elementwise, as bool."
    return op(rule="promote", operator=operator, vjp=CONSTANT)(body)


equal = _compare("equal", "__eq__", "==")
not_equal = _compare("not_equal", "__ne__", "!=")
less = _compare("less", "__lt__", "<")
less_equal = _compare("less_equal", "__le__", "<=")
greater = _compare("greater", "__gt__", ">")
greater_equal = _compare("greater_equal", "__ge__", ">=")


def _logical(name: str, doc: str):
    def body(x, y):
        ...
    body.__name__, body.__doc__ = name, doc
    return op(rule="promote", vjp=CONSTANT)(body)


logical_and = _logical("logical_and", "x and y, elementwise, of bool tensors.")
logical_or = _logical("logical_or", "x or y, elementwise, of bool tensors.")
logical_xor = _logical("logical_xor", "Whether exactly one of x and y holds, elementwise, of bool tensors.")


@op(vjp=CONSTANT)
def logical_not(x):
    """not x, elementwise, of a bool tensor."""
    ...


@op(vjp=CONSTANT)
def isfinite(x):
    """True where x is neither infinite nor nan, elementwise."""
    ...


@op(vjp=CONSTANT)
def isinf(x):
    """True where x, or a part of a complex x, is infinite, elementwise."""
    ...


@op(vjp=CONSTANT)
def isnan(x):
    """True where x, or a part of a complex x, is nan, elementwise."""
    ...


@op(vjp=(lambda g, _y, _x, _dtype: g,))
def astype(x, dtype):
    """x in another dtype (a DType, its name, or a Python type), elementwise. Gradients come back in x's dtype."""
    ...


def _astype(x: EmberTensor, dtype) -> EmberTensor:
    """x in another dtype (a DType, its name, or a Python type); the same array where it has that dtype already."""
    return EmberTensor(x.data, x.backend, x.node) if x.dtype is dt.dtype(dtype) else astype(x, dtype)


EmberTensor.astype = _astype
