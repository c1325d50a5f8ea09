"""Integers as bits, and floating-point numbers as their representation: sign bits and neighbours."""

from __future__ import annotations

from ember_ml.ops.declare import op
from ember_ml.ops.dispatch import CONSTANT
from ember_ml.ops.elementwise import where


def _bitwise(name: str, operator: str, doc: str):
    def body(x, y):
        ...
    body.__name__, body.__doc__ = name, doc
    return op(rule="promote", operator=f"__{operator}__", reflected=f"__r{operator}__", vjp=CONSTANT)(body)


bitwise_and = _bitwise("bitwise_and", "and", "x & y of integers bit by bit, or of bools, elementwise.")
bitwise_or = _bitwise("bitwise_or", "or", "x | y of integers bit by bit, or of bools, elementwise.")
bitwise_xor = _bitwise("bitwise_xor", "xor", "x ^ y of integers bit by bit, or of bools, elementwise.")
bitwise_left_shift = _bitwise("bitwise_left_shift", "lshift", "x << y of integers, elementwise; 0 once all bits are shifted out.")
bitwise_right_shift = _bitwise("bitwise_right_shift", "rshift", "x >> y of integers, elementwise: the floor of x / 2^y.")


@op(vjp=CONSTANT, operator="__invert__")
def bitwise_invert(x):
    """~x of integers bit by bit, or of bools, elementwise."""
    ...


@op(vjp=CONSTANT)
def signbit(x):
    """Whether the sign bit of a floating-point number is set, elementwise: true for -0.0 and negative nan too."""
    ...


@op(rule="float_promote", vjp=(lambda g, y, a, _b: g * where(signbit(a) == signbit(y), 1.0, -1.0), None))
def copysign(x, y):
    """The magnitude of x with the sign bit of y, elementwise."""
    ...


@op(rule="float_promote", no_grad="it names the neighbour of a number; no engine differentiates it")
def nextafter(x, y):
    """The next floating-point number after x in the direction of y, elementwise."""
    ...
