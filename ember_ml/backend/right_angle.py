"""The right-angle convolution: how many points it takes, and what it leaves over. The engines' own files compute it.

A filter k and an input u of real numbers are polynomials. Their product is taken modulo x^M - i, at the M roots of that, which are
w r^f with w = exp(i pi / 2M) and r an M-th root of one: twist by w^n, transform, multiply, transform back, untwist. What
exceeds x^M comes back multiplied by i, so that it does not mix with the real part: M complex points carry 2 M real outputs, where
the usual way pads u and k to 2 M real points each.

A filter of the future multiplies by x^-n, which is the complex conjugate at these points: its spectrum is conjugated, and
so is that of the adjoint.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

#: outputs that may wrap round and are then mended one by one: a length of 2^j + 2, HyenaDNA's, leaves 3 over
MENDED = 8


class Plan(NamedTuple):
    """points: M. left: outputs that wrapped round; the first ones lack products of the last inputs and the last taps."""

    points: int
    left: int


@lru_cache(maxsize=256)
def plan(length: int, taps: int, both_ways: bool) -> Plan:
    """For rows of `length`, filters of `taps` (at most length); with `both_ways` there are filters of the future too."""
    need = length + taps - 1                               # outputs in all; 2 M of them fit
    below = 1 << max((need // 2).bit_length() - 1, 0)
    left = need - 2 * below
    if 0 < left <= min(MENDED, length - 1, taps - 1) and not both_ways:
        return Plan(below, left)
    return Plan(smooth((need + 1) // 2), 0)


@lru_cache(maxsize=256)
def smooth(at_least: int) -> int:
    """The smallest 2^a 3^b 5^c that is not below `at_least`: sizes that every FFT library does fast."""
    best, five = 1 << max(at_least - 1, 0).bit_length(), 1
    while five < best:
        three = five
        while three < best:
            two = three
            while two < at_least:
                two *= 2
            best = min(best, two)
            three *= 3
        five *= 5
    return best


@lru_cache(maxsize=64)
def blocks(batch: int, heads: int, rows: int) -> tuple[tuple[tuple[slice, slice], ...], ...]:
    """(batch, heads) cut into about equal blocks of at most `rows` rows: for some heads each, all (sequences, heads).

    A block holds the whole batch where it fits, so that the spectrum of a filter is read once.
    """
    high, wide = _even(batch, rows), _even(heads, max(1, rows // max(batch, 1)))
    return tuple(tuple((slice(b, min(b + high, batch)), slice(h, min(h + wide, heads))) for b in range(0, batch, high))
                 for h in range(0, heads, wide))


def _even(things: int, most: int) -> int:
    """How many things go into a part if each has at most `most` of them and about as many as the others."""
    return max(1, -(-things // max(1, -(-things // most))))
