"""Questions about dtypes, as the array API asks them."""

from __future__ import annotations

import builtins
from dataclasses import dataclass

from ember_ml.errors import UnsupportedDtype
from ember_ml.ops import creation, elementwise
from ember_ml.tensor import EmberTensor
from ember_ml.tensor.common import dtypes as dt
from ember_ml.tensor.common.dtypes import DType

#: the array API's names of kinds, and Ember's kinds that belong to each
KINDS = {
    "bool": ("bool",), "signed integer": ("int",), "unsigned integer": ("uint",), "integral": ("int", "uint"),
    "real floating": ("float",), "complex floating": ("complex",), "numeric": ("int", "uint", "float", "complex"),
}

#: bits of the fraction, and the exponent of the largest and the smallest normal number
_FLOATS = {"float16": (10, 15, -14), "bfloat16": (7, 127, -126), "float32": (23, 127, -126), "float64": (52, 1023, -1022)}


@dataclass(frozen=True)
class FloatInfo:
    """bits; eps, the gap after 1; max and min, the largest and least number; smallest_normal, above 0; the real dtype."""

    bits: int
    eps: float
    max: float
    min: float
    smallest_normal: float
    dtype: DType


@dataclass(frozen=True)
class IntegerInfo:
    """bits; max and min, the largest and least number; the dtype."""

    bits: int
    max: int
    min: int
    dtype: DType


def astype(x: EmberTensor, dtype, copy: bool = True, device: str | None = None) -> EmberTensor:
    """x in another dtype and, if asked, on another device. No tensor is a view of another, so `copy` changes nothing.

    Raises TypeError from complex to real: take x.real() or abs(x).
    """
    dtype = dt.dtype(dtype)
    if x.dtype.kind == "complex" and dtype.kind != "complex":
        raise TypeError(f"astype: expected a complex dtype for {x.dtype}, got {dtype}; say which part with .real(), .imag() or abs(x)")
    y = elementwise.astype(x, dtype)
    return y if device is None else creation.to(y, device)


def _dtype_of(value) -> DType:
    return value.dtype if isinstance(value, EmberTensor) else dt.dtype(value)


def can_cast(from_, to) -> bool:
    """Whether promotion leads from the dtype (or the tensor's) `from_` to the dtype `to`, so that nothing is lost."""
    source, target = _dtype_of(from_), dt.dtype(to)
    try:
        return dt.promote(source, target) is target
    except UnsupportedDtype:
        return False


def finfo(type) -> FloatInfo:
    """Limits of a floating-point dtype (a complex one: of its parts), or of a tensor's. Raises UnsupportedDtype for others."""
    d = _dtype_of(type)
    d = {"complex64": dt.float32, "complex128": dt.float64}.get(d.name, d)
    if d.name not in _FLOATS:
        raise UnsupportedDtype(f"finfo: expected a floating-point dtype, got {d}; iinfo knows integers")
    fraction, top, bottom = _FLOATS[d.name]
    largest = (2.0 - 2.0 ** -fraction) * 2.0 ** top
    return FloatInfo(d.bits, 2.0 ** -fraction, largest, -largest, 2.0 ** bottom, d)


def iinfo(type) -> IntegerInfo:
    """Limits of an integer dtype, or of a tensor's. Raises UnsupportedDtype for others."""
    d = _dtype_of(type)
    if not d.is_integer:
        raise UnsupportedDtype(f"iinfo: expected an integer dtype, got {d}; finfo knows floating-point numbers")
    low, high = (0, 2 ** d.bits - 1) if d.kind == "uint" else (-2 ** (d.bits - 1), 2 ** (d.bits - 1) - 1)
    return IntegerInfo(d.bits, high, low, d)


def isdtype(dtype, kind) -> bool:
    """Whether a dtype is `kind`: a dtype, one of the array API's names of kinds ("integral", ...), or a tuple of these."""
    dtype = dt.dtype(dtype)
    if isinstance(kind, tuple):
        return builtins.any(isdtype(dtype, k) for k in kind)
    if isinstance(kind, str) and kind in KINDS:
        return dtype.kind in KINDS[kind]
    if isinstance(kind, str):
        raise ValueError(f"isdtype: expected a dtype or one of {', '.join(KINDS)}; got {kind!r}")
    return dtype is dt.dtype(kind)


def result_type(*arrays_and_dtypes) -> DType:
    """The dtype of an op between these tensors, dtypes and Python numbers, which never widen the others."""
    weak = [v for v in arrays_and_dtypes if isinstance(v, (bool, int, float, complex))]
    found = None
    for value in arrays_and_dtypes:
        if not isinstance(value, (bool, int, float, complex)):
            found = _dtype_of(value) if found is None else dt.promote(found, _dtype_of(value))
    if found is None:
        raise ValueError("result_type: expected at least one tensor or dtype")
    for value in weak:
        found = dt.weak_result(found, value)
    return found
