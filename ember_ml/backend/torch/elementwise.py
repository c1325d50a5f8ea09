"""Functions of single elements on torch, and what torch spells or does differently from the op's definition there."""

from __future__ import annotations

import math

import torch


def _numbers(fn):
    """Functions of two tensors that torch gives no number for either."""
    def call(x, y):
        if not isinstance(y, torch.Tensor):
            y = torch.as_tensor(y, dtype=x.dtype, device=x.device)
        elif not isinstance(x, torch.Tensor):
            x = torch.as_tensor(x, dtype=y.dtype, device=y.device)
        return fn(x, y)
    return call


def _turned(fn, mirrored):
    """Comparisons, for which torch takes a number on the right only."""
    return lambda x, y: fn(x, y) if isinstance(x, torch.Tensor) else mirrored(y, x)


def _extreme(fn, bound):
    """maximum and minimum, which torch spells clamp beside a number."""
    def call(x, y):
        if isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor):
            return fn(x, y)
        x, y = (x, y) if isinstance(x, torch.Tensor) else (y, x)
        return torch.clamp(x, **{bound: y})
    return call


def _sign(x):
    """torch has no sign of nan but 0."""
    return torch.where(torch.isnan(x), x, torch.sgn(x)) if x.is_floating_point() else torch.sgn(x)


def _floor_divide(x, y):
    """Where an operand is infinite, torch gives nan or -1 for what the standard defines as the quotient."""
    out = torch.floor_divide(x, y)
    if not out.is_floating_point():
        return out
    infinite = [torch.isinf(v) if isinstance(v, torch.Tensor) else math.isinf(v) for v in (x, y)]
    return torch.where(infinite[0] | infinite[1], torch.div(x, y), out)


def _expm1(x):
    """torch's complex one turns infinite and signed zero parts into nan."""
    if not x.is_complex():
        return torch.expm1(x)
    a, b = torch.real(x), torch.imag(x)
    one, half, flat = torch.expm1(a), torch.sin(0.5 * b), b == 0
    edge = torch.isinf(a) & ~torch.isfinite(b)             # nothing, or infinity, turned by no angle
    real = torch.where(flat | edge, one + 0.0, one * torch.cos(b) - 2.0 * half * half)
    imag = torch.where(flat, b, torch.where(edge, torch.where(a < 0, 0.0, math.nan).to(a.dtype), torch.exp(a) * torch.sin(b)))
    return torch.complex(real, imag)


def _log1p(x):
    """torch's complex one gives nan for some infinite parts: log |1 + x| + i arg(1 + x), by log1p where x is small."""
    if not x.is_complex():
        return torch.log1p(x)
    a, b = torch.real(x), torch.imag(x)
    small = (torch.abs(a) < 0.5) & (torch.abs(b) < 0.5)
    p, q = torch.where(small, a, 0.0), torch.where(small, b, 0.0)
    near = 0.5 * torch.log1p(p * (2.0 + p) + q * q)
    far = torch.log(torch.hypot(torch.where(small, 1.0, 1.0 + a), torch.where(small, 0.0, b)))
    return torch.complex(torch.where(small, near, far), torch.atan2(b, 1.0 + a))


def _tanh(x):
    """torch leaves the sign of a zero imaginary part to chance beside an infinite real one, and loses a zero real one beside nan."""
    y = torch.tanh(x)
    if not x.is_complex():
        return y
    a, b = torch.real(x), torch.imag(x)
    real = torch.where((a == 0) & ~torch.isfinite(b), a, torch.real(y))
    imag = torch.where(torch.isinf(a) & torch.isfinite(b), torch.copysign(torch.zeros_like(b), b), torch.imag(y))
    return torch.complex(real, imag)


def _shift(fn, out_of_range):
    """Shifts by the width or more, which are undefined in C."""
    def call(x, y):
        bits = 8 * x.element_size()
        return torch.where(y >= bits, out_of_range(x, bits), fn(x, torch.clamp(y, max=bits - 1)))
    return _numbers(call)


def _floats_only(fn):
    """Ops that torch would apply to integers or bools as something else than defined."""
    return lambda x: fn(x) if x.dtype.is_floating_point or x.dtype.is_complex else x


TABLE = {
    "add": torch.add, "subtract": torch.sub, "multiply": torch.mul, "divide": torch.div,
    "floor_divide": _floor_divide, "remainder": torch.remainder, "pow": torch.pow,
    "maximum": _extreme(torch.maximum, "min"), "minimum": _extreme(torch.minimum, "max"),
    "negative": torch.neg, "abs": torch.abs, "sign": _sign, "square": torch.square,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt, "exp": torch.exp, "exp2": torch.exp2, "expm1": _expm1, "log": torch.log, "log1p": _log1p,
    "atan2": _numbers(torch.atan2), "sin": torch.sin, "cos": torch.cos, "tanh": _tanh, "erf": torch.erf, "erfinv": torch.erfinv,
    "floor": _floats_only(torch.floor), "round": _floats_only(torch.round),
    "ceil": _floats_only(torch.ceil), "trunc": _floats_only(torch.trunc),
    "tan": torch.tan, "asin": torch.asin, "acos": torch.acos, "atan": torch.atan, "sinh": torch.sinh, "cosh": torch.cosh,
    "asinh": torch.asinh, "acosh": torch.acosh, "atanh": torch.atanh, "hypot": _numbers(torch.hypot), "log2": torch.log2,
    "log10": torch.log10, "logaddexp": _numbers(torch.logaddexp), "reciprocal": torch.reciprocal, "isinf": torch.isinf,
    "isnan": torch.isnan, "signbit": torch.signbit, "copysign": _numbers(torch.copysign), "nextafter": _numbers(torch.nextafter),
    "bitwise_and": _numbers(torch.bitwise_and), "bitwise_or": _numbers(torch.bitwise_or),
    "bitwise_xor": _numbers(torch.bitwise_xor), "bitwise_invert": torch.bitwise_not, "logical_xor": _numbers(torch.logical_xor),
    "bitwise_left_shift": _shift(torch.bitwise_left_shift, lambda x, bits: torch.zeros_like(x)),
    "bitwise_right_shift": _shift(torch.bitwise_right_shift, lambda x, bits: torch.bitwise_right_shift(x, bits - 1)),
    "conj": lambda x: torch.conj(x).resolve_conj() if x.is_complex() else x,
    "real": lambda x: torch.real(x).contiguous() if x.is_complex() else x,
    "imag": lambda x: torch.imag(x).contiguous(), "complex": torch.complex, "where": torch.where,
    "equal": _turned(torch.eq, torch.eq), "not_equal": _turned(torch.ne, torch.ne), "less": _turned(torch.lt, torch.gt),
    "less_equal": _turned(torch.le, torch.ge), "greater": _turned(torch.gt, torch.lt), "greater_equal": _turned(torch.ge, torch.le),
    "logical_and": _numbers(torch.logical_and), "logical_or": _numbers(torch.logical_or),
    "logical_not": torch.logical_not, "isfinite": torch.isfinite,
    "lgamma": torch.lgamma, "digamma": torch.digamma,
}
