"""How the kernels of the long convolution (metal/fftconv.metal, cuda/fftconv.cu) cut each length up."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache, cached_property
from math import cos, pi, sin

from ember_ml.kernels.gpu import Groups


@dataclass(frozen=True)
class Plan:
    """How a transform of M = 2^log_m complex points, which convolves up to 2 M real ones, is shared out.

    Args:
        log_points: log2 of the complex numbers that a thread holds.
        rows: rows of a threadgroup.
        split: on Metal, real and imaginary parts are exchanged one after the other, in half the memory.
        padded: one number of 17 is left free where numbers are exchanged, see `padded` in the kernels.
    """

    log_m: int
    log_points: int
    rows: int = 1
    split: bool = field(default=False, kw_only=True)
    padded: bool = field(default=True, kw_only=True)

    @property
    def m(self) -> int:
        return 1 << self.log_m

    @property
    def threads(self) -> int:
        """Threads of a threadgroup."""
        return self.rows << (self.log_m - self.log_points)

    def groups(self, rows: int) -> Groups:
        """Threads that work on so many rows."""
        return Groups(-(-rows // self.rows), self.threads)

    def template(self, language: str, options: int, outer: int = 0) -> str:
        """What a kernel of this plan is compiled for; `outer`: levels of a longer transform above."""
        numbers, above = f"{self.log_m}, {self.log_points}, {self.rows}", f", {outer}" if outer else ""
        if language == "metal":
            return f"fftconv::Plan<{numbers}, {str(self.split).lower()}, {options}{above}>"
        return f"{numbers}, {options}, {self.blocks}{above}"

    def shared_floats(self, keep: int = 0) -> int:
        """Of a threadgroup that keeps so many numbers a point besides those that it exchanges."""
        return self.rows * (self.row_floats + 2 * keep * self.m)

    @property
    def row_floats(self) -> int:
        """Floats of the exchange buffer of a row."""
        return (self.m + self.m // 16 * self.padded) * (1 if self.split else 2)

    @cached_property
    def passes(self) -> tuple[int, ...]:
        """log2 of the radix of each pass, nearly equal, the larger ones first."""
        count = -(-self.log_m // self.log_points)
        return tuple(self.log_m // count + (i < self.log_m % count) for i in range(count))

    def parts(self, batch: int, heads: int) -> int:
        """Parts into which `backward` cuts the batch, so that there are some blocks for every multiprocessor. None is empty."""
        each = -(-batch // max(1, min(batch, 1024 // heads)))
        return -(-batch // each)


@dataclass(frozen=True)
class CudaPlan(Plan):
    """A plan with what CUDA's kernels are tuned by.

    Args:
        blocks: blocks that a multiprocessor is to hold at once; bounds the registers of a thread.
        keep: of the two numbers a point that `backward` keeps, those in shared memory; the others are in the L2 cache.
    """

    blocks: int = 1
    keep: int = 0


#: log2 of M: (log2 of a thread's points, forward, backward), each of these (rows, blocks), and for backward what it keeps in
#: shared memory. A spectrum serves both.
_CUDA = {
    5: (3, (32, 4), (32, 4, 2)),
    6: (3, (16, 4), (16, 4, 2)),
    7: (4, (16, 4), (16, 4, 2)),
    8: (4, (8, 4), (8, 4, 2)),
    9: (4, (4, 4), (4, 4, 2)),
    10: (4, (2, 4), (2, 4, 2)),
    11: (4, (1, 4), (1, 4, 2)),
    12: (4, (1, 4), (1, 2, 2)),
    13: (5, (1, 2), (1, 1, 2)),
    14: (5, (1, 1), (1, 1, 0)),
}


@dataclass(frozen=True)
class LongPlan:
    """A transform of 2^outer rows of the inner plan: three kernels, and a workspace of 8 bytes a point for some rows.

    Args:
        workspace: bytes that are meant. What fits into the L2 cache need not go to device memory and back, but leaves most of
            the chip idle: on an H100 32 MB are a quarter slower than 1 GB.
    """

    outer: int
    inner: Plan
    workspace: int = 1 << 30

    @property
    def tiles(self) -> tuple[int, ...]:
        """On Metal, whose threads have registers for 32 points: log2 of the radix of the passes of longer columns, which threads
        share, and of the inner plan; empty if a thread holds a column."""
        return (-(-self.outer // 2), self.outer // 2, self.inner.log_m) if self.outer > 5 else ()

    @property
    def tile_points(self) -> int:
        """log2 of a thread's points of such a column, which 8 threads share."""
        return self.outer - 3

    def columns(self, language: str, options: int) -> tuple[str, int, int]:
        """(what a kernel of the columns is compiled for, threadgroups of 256 for those of a row, floats in which one exchanges)."""
        numbers, groups = f"{self.outer}, {self.inner.log_m}, {options}", max(1, self.inner.m // 256)
        if language == "cuda":
            return numbers, groups, 0
        if not self.tiles:
            return f"fftconv::Columns<{numbers}>", groups, 0
        own = f"fftconv::Plan<{self.log_m}, {self.tile_points}, 1, true, {options}, 0, {self.inner.log_m}>"
        return own, self.inner.m // 32, 256 << self.tile_points

    @property
    def m(self) -> int:
        return self.inner.m << self.outer

    @property
    def log_m(self) -> int:
        return self.inner.log_m + self.outer

    @property
    def log_points(self) -> int:
        return self.inner.log_points

    def together(self, rows: int, spaces: int = 1) -> int:
        """Sets of `rows` rows that are worked on at a time, with so many workspaces."""
        return max(1, self.workspace // (8 * self.m * rows * spaces))


#: log2 of the shortest and of the longest transform
SHORTEST, LONGEST = 5, 20


@cache
def cuda_plans(log_m: int) -> tuple[CudaPlan, CudaPlan] | tuple[LongPlan, LongPlan] | None:
    """The plans of forward and backward; None if no kernel has such a row."""
    if log_m > LONGEST:
        return None
    if log_m > max(_CUDA):
        inner = 14 if log_m == LONGEST else 13             # a thread must hold a column, 64 points at most
        plan = LongPlan(log_m - inner, cuda_plans(inner)[0])
        return plan, plan
    log_m = max(log_m, SHORTEST)
    points, forward, backward = _CUDA[log_m]
    return CudaPlan(log_m, points, *forward), CudaPlan(log_m, points, *backward)


#: log2 of M: (log2 of a thread's points, rows, split, padded); a threadgroup has 32 KiB, and at most 256 threads: so many every Apple GPU
#: starts whatever registers they need, 512 only where they need few, which nobody knows before
_METAL = {
    5: (3, 32, False, True),
    6: (3, 16, False, True),
    7: (4, 16, False, True),
    8: (4, 8, False, True),
    9: (4, 4, False, True),
    10: (4, 2, False, True),
    11: (4, 1, False, True),
    12: (4, 1, True, True),
    13: (5, 1, True, False),
}

#: log2 of the longest transforms of one pass
ONE_PASS = {"metal": max(_METAL), "cuda": max(_CUDA)}


@cache
def metal_plan(log_m: int) -> Plan | LongPlan | None:
    """The plan of all of Metal's kernels; None if they have no such row."""
    log_m, longest = max(log_m, SHORTEST), max(_METAL)
    if log_m > LONGEST:
        return None
    points, rows, split, padded = _METAL[min(log_m, longest)]
    plan = Plan(min(log_m, longest), points, rows, split=split, padded=padded)
    return plan if log_m <= longest else LongPlan(log_m - longest, plan)


def factors(passes: tuple[int, ...], outer: int = 0) -> list[float]:
    """The factors that the passes read, in the order of `Plan` in the kernels: real and imaginary parts of f and f^4.

    For each pass but the very first, f is the root of each of its blocks; for each pass but the last, a power for each
    position in a block; then the twist of the very first pass.

    Args:
        passes: log2 of the radix of each. outer: levels of a longer transform above them.
    """
    log_m, angles = sum(passes), []
    for i in range(0 if outer else 1, len(passes)):
        above, bits = outer + sum(passes[:i]), passes[i]
        angles += [2 * pi * (_reversed(block, above) + 0.25) / (1 << (above + bits)) for block in range(1 << above)]
    for i in range(len(passes) - 1):
        size = log_m - sum(passes[:i])
        angles += [-2 * pi * j / (1 << size) for j in range(1 << (size - passes[i]))]
    if not outer:
        angles += [-pi * j / (2 << log_m) for j in range(1 << (log_m - passes[0]))]
    return [part for angle in angles for part in (cos(angle), sin(angle), cos(4 * angle), sin(4 * angle))]


def column_factors(outer: int, log_inner: int) -> list[float]:
    """The factors of the columns on the way back: f, f^4, f^16 and the twist for each of their positions in a row."""
    turns = [-pi * j / (2 << (outer + log_inner)) for j in range(1 << log_inner)]
    return [part for turn in turns for angle in (4 * turn, 16 * turn, 64 * turn, turn) for part in (cos(angle), sin(angle))]


def _reversed(number: int, bits: int) -> int:
    return sum((number >> i & 1) << (bits - 1 - i) for i in range(bits))


#: numbers by which a causal convolution may be longer than 2 M, as the kernels name them; HyenaDNA's lengths, 2^j + 2, have 3
TAILS = 8


def log_m(length: int, taps: int) -> int:
    """log2 of the points that convolve rows of `length` with filters of `taps`: 2 M >= length + taps - 1."""
    return max((length + taps) // 2 - 1, 1).bit_length()


def transform_size(length: int, taps: int, exact: bool) -> tuple[int, bool]:
    """(log2 of the points, whether a few numbers come back and are mended) for rows of `length` and filters of `taps`.

    `exact`: nothing may come back, as with a filter that looks ahead, or with pairs of channels.
    """
    least = log_m(length, taps)
    left = length + taps - 1 - (1 << least)                # beyond 2 M for the next smaller M
    tailed = not exact and least > SHORTEST and 0 < left <= TAILS and max(length, taps) <= 1 << least
    return (least - 1, True) if tailed else (least, False)
