"""Functions of single elements on MLX, and shims for what MLX 0.32 lacks or defines otherwise there. Each shim says why it is there."""

from __future__ import annotations

import math

import mlx.core as mx


def is_complex(x) -> bool:
    return x.dtype == mx.complex64


def is_integer(x) -> bool:
    return not mx.issubdtype(x.dtype, mx.inexact)


def _keep(fn):
    """Functions that MLX would turn integers into floats for."""
    return lambda x: x if is_integer(x) else fn(x)


def _sign(x):
    if is_complex(x):
        size = mx.abs(x)
        return mx.where(size == 0, mx.zeros_like(x), x / mx.where(size == 0, 1.0, size))
    return mx.sign(x) if is_integer(x) else mx.where(mx.isnan(x), x, mx.sign(x))    # MLX has no sign of nan but 0


def _signbit(x):
    """MLX has none: the top bit of the number's bits."""
    bits = {2: mx.uint16, 4: mx.uint32}[x.itemsize]
    return (mx.stop_gradient(x).view(bits) >> (8 * x.itemsize - 1)).astype(mx.bool_)


def _expm1(x):
    """MLX has no complex one: (e^a cos b - 1) + i e^a sin b, where 1 - cos b = 2 sin^2(b / 2) keeps the digits near 0."""
    if not is_complex(x):
        return mx.expm1(x)
    a, b = mx.real(x), mx.imag(x)
    one, half, flat = mx.expm1(a), mx.sin(0.5 * b), b == 0
    edge = mx.isinf(a) & ~mx.isfinite(b)                 # nothing, or infinity, turned by no angle
    real = mx.where(flat | edge, one + 0.0, one * mx.cos(b) - 2.0 * half * half)
    imag = mx.where(flat, b, mx.where(edge, mx.where(a < 0, 0.0, math.nan), mx.exp(a) * mx.sin(b)))
    return _beside(real, imag)


@mx.custom_function
def _beside(x, y):
    """x + i y side by side in memory: x + 1j * inf is nan + i inf in MLX."""
    return mx.stack([x, y], axis=-1).view(mx.complex64).reshape(x.shape)


@_beside.vjp
def _beside_vjp(primals, g, out):
    return mx.real(g), mx.imag(g)


def _complex(x, y):
    return _beside(*(v.astype(mx.float32) for v in mx.broadcast_arrays(*_arrays(x, y))))


def _tanh(x):
    """MLX gives the zero imaginary part beside an infinite real one the sign of sin(2 b), the standard that of b."""
    y = mx.tanh(x)
    if not is_complex(x):
        return y
    a, b = mx.real(x), mx.imag(x)
    edge = mx.isinf(a) & mx.isfinite(b)
    return mx.where(edge, _beside(mx.where(a < 0, -1.0, 1.0), _copysign(mx.zeros_like(b), b)), y)


def _copysign(x, y):
    """MLX has none."""
    x, y = _arrays(x, y)
    size = mx.abs(x)
    return mx.where(_signbit(y), -size, size)


def _arrays(x, y):
    """A number beside an array as an array of its dtype, for shims that look into both."""
    return x if isinstance(x, mx.array) else mx.array(x, y.dtype), y if isinstance(y, mx.array) else mx.array(y, x.dtype)


def _hypot(x, y):
    """MLX has none: the larger side is taken out of the root, so that no square overflows."""
    x, y = _arrays(x, y)
    x, y = mx.abs(x), mx.abs(y)
    long, short = mx.maximum(x, y), mx.minimum(x, y)
    out = long * mx.sqrt(1 + mx.square(short / mx.where(long == 0, mx.ones_like(long), long)))
    return mx.where(mx.isinf(x) | mx.isinf(y), mx.array(math.inf, out.dtype), out)


def _nextafter(x, y):
    """MLX has none: the neighbours of a number are those of its bits, counted from zero on either side."""
    x, y = _arrays(x, y)
    x, y = mx.broadcast_arrays(x, y)
    kind = {2: mx.int16, 4: mx.int32}[x.itemsize]
    least = mx.array(1, kind).view(x.dtype)
    away = (y > x) == (x > 0)
    moved = (x.view(kind) + mx.where(away, mx.array(1, kind), mx.array(-1, kind))).view(x.dtype)
    moved = mx.where(x == 0, mx.where(y > 0, least, -least), moved)
    return mx.where(x == y, y, mx.where(mx.isnan(x) | mx.isnan(y), mx.array(math.nan, x.dtype), moved))


def _shift(fn, right: bool):
    """Shifts by the width or more, which wrap around in MLX."""
    def call(x, y):
        x, y = _arrays(x, y)
        bits = 8 * x.itemsize
        most = fn(x, mx.array(bits - 1, y.dtype)) if right else mx.zeros_like(x)
        return mx.where(y >= bits, most, fn(x, mx.minimum(y, bits - 1)))
    return call


@mx.custom_function
def _complex_power(x, y):
    return mx.power(x, y)


@_complex_power.vjp
def _complex_power_vjp(primals, g, out):
    """MLX's own rule forgets to conjugate."""
    x, y = primals
    return g * mx.conj(y * mx.power(x, y - 1)), g * mx.conj(out * mx.log(x))


def _pow(x, y):
    if not any(isinstance(v, mx.array) and is_complex(v) for v in (x, y)):
        return mx.power(x, y)
    return _complex_power(*mx.broadcast_arrays(*(mx.array(v, mx.complex64) for v in (x, y))))


def _exp2(x):
    """2^x. MLX has none: on the CPU its power is three times as fast as its exp, on the GPU exp is the faster one."""
    return mx.power(2.0, x) if mx.default_device() == mx.cpu else mx.exp(x * math.log(2.0))


TABLE = {
    "add": mx.add, "subtract": mx.subtract, "multiply": mx.multiply, "divide": mx.divide,
    "floor_divide": mx.floor_divide, "remainder": mx.remainder, "pow": _pow, "maximum": mx.maximum,
    "minimum": mx.minimum, "negative": mx.negative, "abs": mx.abs, "sign": _sign, "square": mx.square,
    "sqrt": mx.sqrt, "rsqrt": mx.rsqrt, "exp": mx.exp, "exp2": _exp2, "expm1": _expm1, "log": mx.log, "log1p": mx.log1p,
    "atan2": mx.arctan2, "sin": mx.sin, "cos": mx.cos, "tanh": _tanh, "erf": mx.erf, "erfinv": mx.erfinv,
    "floor": _keep(mx.floor), "round": _keep(mx.round),
    "ceil": _keep(mx.ceil), "trunc": _keep(mx.trunc), "tan": mx.tan, "asin": mx.arcsin, "acos": mx.arccos, "atan": mx.arctan,
    "sinh": mx.sinh, "cosh": mx.cosh, "asinh": mx.arcsinh, "acosh": mx.arccosh, "atanh": mx.arctanh, "hypot": _hypot,
    "log2": mx.log2, "log10": mx.log10, "logaddexp": mx.logaddexp, "reciprocal": mx.reciprocal, "isinf": mx.isinf, "isnan": mx.isnan,
    "signbit": _signbit, "copysign": _copysign, "nextafter": _nextafter, "bitwise_and": mx.bitwise_and, "bitwise_or": mx.bitwise_or,
    "bitwise_xor": mx.bitwise_xor, "bitwise_invert": mx.bitwise_invert, "logical_xor": mx.logical_xor,
    "bitwise_left_shift": _shift(mx.left_shift, False), "bitwise_right_shift": _shift(mx.right_shift, True),
    "conj": lambda x: mx.conj(x) if is_complex(x) else x, "real": lambda x: mx.real(x) if is_complex(x) else x,
    "imag": mx.imag, "complex": _complex,
    "where": mx.where, "equal": mx.equal, "not_equal": mx.not_equal, "less": mx.less, "less_equal": mx.less_equal,
    "greater": mx.greater, "greater_equal": mx.greater_equal, "logical_and": mx.logical_and,
    "logical_or": mx.logical_or, "logical_not": mx.logical_not, "isfinite": mx.isfinite,
}
