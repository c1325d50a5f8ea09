"""Dtypes and their promotion, decided once for all engines.

The table is the array API standard's where that defines a result. Where it does not (integer with float, float with
complex of another width), the floating kind wins and keeps its width. Defaults: float32, int32, complex64.
Nothing is ever cast down silently: int64 with uint64 has no common dtype here and raises.
"""

from __future__ import annotations

from functools import lru_cache

from ember_ml.errors import UnsupportedDtype


class DType:
    """An element type: `name` as in NumPy, `kind` (bool, int, uint, float, complex) and `bits` per element."""

    __slots__ = ("name", "kind", "bits")

    def __init__(self, name: str, kind: str, bits: int):
        self.name, self.kind, self.bits = name, kind, bits

    @property
    def itemsize(self) -> int:
        """Bytes per element."""
        return max(self.bits // 8, 1)

    @property
    def is_integer(self) -> bool:
        """True for signed and unsigned integers, not for bool."""
        return self.kind in ("int", "uint")

    @property
    def is_inexact(self) -> bool:
        """True for real and complex floating point: the dtypes that have gradients."""
        return self.kind in ("float", "complex")

    def __repr__(self) -> str:
        return f"ember_ml.{self.name}"

    def __str__(self) -> str:
        return self.name

    def __reduce__(self):
        return (dtype, (self.name,))


bool_ = DType("bool", "bool", 1)
int8, int16, int32, int64 = (DType(f"int{b}", "int", b) for b in (8, 16, 32, 64))
uint8, uint16, uint32, uint64 = (DType(f"uint{b}", "uint", b) for b in (8, 16, 32, 64))
float16, bfloat16 = DType("float16", "float", 16), DType("bfloat16", "float", 16)
float32, float64 = DType("float32", "float", 32), DType("float64", "float", 64)
complex64, complex128 = DType("complex64", "complex", 64), DType("complex128", "complex", 128)

ALL = (bool_, int8, int16, int32, int64, uint8, uint16, uint32, uint64,
       float16, bfloat16, float32, float64, complex64, complex128)
_BY_NAME = {d.name: d for d in ALL} | {"bool_": bool_, "float": float32, "int": int32}
_BY_PYTHON = {bool: bool_, int: int32, float: float32, complex: complex64}


def dtype(value) -> DType:
    """The DType meant by `value`: a DType, a name, a Python type, or anything with a NumPy-like dtype name.

    Raises UnsupportedDtype for everything else, listing what there is.
    """
    if isinstance(value, DType):
        return value
    if isinstance(value, type) and value in _BY_PYTHON:
        return _BY_PYTHON[value]
    name = value if isinstance(value, str) else getattr(value, "name", None) or getattr(value, "__name__", None)
    if name in _BY_NAME:
        return _BY_NAME[name]
    hint = "; a shape of several axes is one tuple" if isinstance(value, int) else ""
    raise UnsupportedDtype(f"dtype: expected one of {', '.join(d.name for d in ALL)}; got {value!r}{hint}")


@lru_cache(maxsize=None)
def promote(a: DType, b: DType) -> DType:
    """The dtype of an op between dtypes `a` and `b`.

    Same kind: the wider one (float16 with bfloat16: float32). Signed with unsigned integer: the signed integer that
    holds both. Bool gives way to every other kind, integers to floats, floats to complex.

    Raises UnsupportedDtype for uint64 with a signed integer, which no integer dtype holds.
    """
    if a is b:
        return a
    if a.kind == b.kind:
        if a.bits == b.bits:
            return float32
        return a if a.bits > b.bits else b
    order = ("bool", "uint", "int", "float", "complex")
    low, high = sorted((a, b), key=lambda d: order.index(d.kind))
    if low.kind == "uint" and high.kind == "int":
        bits = max(high.bits, 2 * low.bits)
        if bits > 64:
            raise UnsupportedDtype(f"promotion: no integer dtype holds both {a} and {b}; cast one side with .astype(...)")
        return _BY_NAME[f"int{bits}"]
    if high.kind == "complex" and low is float64:
        return complex128
    return high


def accumulator(d: DType) -> DType:
    """The dtype in which sums and products of `d` are formed: small integers and bools in 32 bits, all others in their own."""
    if d.is_inexact or d.bits >= 32:
        return d
    return uint32 if d.kind == "uint" else int32


def of_scalar(value) -> DType:
    """The default dtype of a Python scalar: bool, int32, float32 or complex64."""
    return _BY_PYTHON[bool if isinstance(value, bool) else int if isinstance(value, int)
                      else float if isinstance(value, float) else complex]


def weak_result(d: DType, value) -> DType:
    """The dtype of an op between a tensor of dtype `d` and the Python scalar `value`, which never widens the tensor.

    A float scalar turns bool and integer tensors into float32, a complex one turns real tensors into complex.
    """
    kinds = ("bool", "uint", "int", "float", "complex")
    s = of_scalar(value)
    if s.kind == "int" and d.kind == "uint" or kinds.index(s.kind) <= kinds.index(d.kind):
        return d
    if s.kind == "complex" and d is float64:
        return complex128
    return s
