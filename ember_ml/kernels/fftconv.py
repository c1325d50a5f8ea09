"""The kernels of the long convolution (metal/fftconv.metal, cuda/fftconv.cu): how each length is cut up."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from math import cos, pi, sin

from ember_ml.kernels import shortconv
from ember_ml.kernels.spec import Entry, KernelSpec, sample_values


@dataclass(frozen=True)
class Plan:
    """How a transform of M = 2^log_m complex points, which convolves up to 2 M real ones, is shared out.

    Args:
        log_points: log2 of the complex numbers that a thread holds.
        rows: rows of a threadgroup.
        split: real and imaginary parts are exchanged one after the other, in half the memory.
        padded: one number of 17 is left free where numbers are exchanged, see `padded` in the kernels.
    """

    log_m: int
    log_points: int
    rows: int = 1
    split: bool = False
    padded: bool = field(default=True, kw_only=True)

    @property
    def m(self) -> int:
        return 1 << self.log_m

    @property
    def threads(self) -> int:
        """Threads of a threadgroup."""
        return self.rows << (self.log_m - self.log_points)

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

    def shared_bytes(self, keep: int = 0) -> int:
        """Of a block that keeps so many numbers a point besides those that it exchanges."""
        return 4 * self.rows * (self.row_floats + 2 * keep * self.m)


#: log2 of M: (log2 of a thread's points, forward, backward), each of these (rows, split, blocks), and for backward what it
#: keeps in shared memory. A spectrum serves both.
_CUDA = {
    5: (3, (32, False, 4), (32, False, 4, 2)),
    6: (3, (16, False, 4), (16, False, 4, 2)),
    7: (4, (16, False, 4), (16, False, 4, 2)),
    8: (4, (8, False, 4), (8, False, 4, 2)),
    9: (4, (4, False, 4), (4, False, 4, 2)),
    10: (4, (2, False, 4), (2, False, 4, 2)),
    11: (4, (1, False, 4), (1, False, 4, 2)),
    12: (4, (1, False, 4), (1, False, 2, 2)),
    13: (5, (1, False, 2), (1, False, 1, 2)),
    14: (5, (1, False, 1), (1, False, 1, 0)),
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


#: log2 of the rows of a LongPlan: (log2 of a thread's points, rows, split, blocks)
_INNER = {13: (5, 1, False, 2), 14: (5, 1, False, 1)}

#: log2 of the longest transform
LONGEST = 20


def cuda_plans(log_m: int) -> tuple[CudaPlan, CudaPlan] | tuple[LongPlan, LongPlan] | None:
    """The plans of forward and backward; None if no kernel has such a row."""
    if log_m > LONGEST:
        return None
    if log_m > max(_CUDA):
        inner = 14 if log_m == LONGEST else 13             # a thread must hold a column, 64 points at most
        plan = LongPlan(log_m - inner, CudaPlan(inner, *_INNER[inner]))
        return plan, plan
    log_m = max(log_m, min(_CUDA))
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


def metal_plan(log_m: int) -> Plan | LongPlan | None:
    """The plan of all of Metal's kernels; None if they have no such row."""
    log_m, longest = max(log_m, min(_METAL)), max(_METAL)
    if log_m > LONGEST:
        return None
    *shape, padded = _METAL[min(log_m, longest)]
    plan = Plan(min(log_m, longest), *shape, padded=padded)
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


#: bits of a kernel's OPTIONS, as the kernels name them
GATE_BEFORE, GATE_AFTER, SKIP, MASK, GELU, REVERSE, FOLD, RAGGED, TAIL, PAIRS = (1 << i for i in range(10))

#: numbers by which a causal convolution may be longer than 2 M, as the kernels name them; HyenaDNA's lengths, 2^j + 2, have 3
TAILS = 8


def options(plan: Plan, length: int, *, v: bool, q: bool, D: bool, mask: bool, gelu: bool, tail: bool, head_dim: int) -> int:
    """The options of a kernel for rows of `length`; the arguments say what there is."""
    bits = zip((GATE_BEFORE, GATE_AFTER, SKIP, MASK, GELU, TAIL, PAIRS), (v, q, D, mask, gelu, tail, head_dim > 1))
    fold = length > plan.m
    return sum(bit for bit, there in bits if there) + FOLD * fold + RAGGED * (length != plan.m * (1 + fold))


def log_m(length: int, taps: int) -> int:
    """log2 of the points that convolve rows of `length` with filters of `taps`: 2 M >= length + taps - 1."""
    return max((length + taps) // 2 - 1, 1).bit_length()


def size_of(u, k, k_reverse=None, head_dim: int = 1) -> tuple[int, bool]:
    """(log2 of the points, whether a few numbers come back and are mended) for the arguments of `fftconv`."""
    return transform_size(u.shape[2], met(u, k, k_reverse), is_both_ways(k, k_reverse) or head_dim > 1)


def transform_size(length: int, taps: int, exact: bool) -> tuple[int, bool]:
    """The same for rows and taps. `exact`: nothing may come back, as with a filter that looks ahead, or with pairs of channels."""
    least = log_m(length, taps)
    left = length + taps - 1 - (1 << least)                # beyond 2 M for the next smaller M
    tailed = not exact and least > min(_CUDA) and 0 < left <= TAILS and max(length, taps) <= 1 << least
    return (least - 1, True) if tailed else (least, False)


_INPUTS = (("u", "T"), ("k", "float32"), ("D", "float32"), ("v", "T"), ("q", "T"), ("k_reverse", "float32"),
           ("dropout_mask", "float32"))

FORWARD = Entry("fftconv_forward", _INPUTS, ("y",), ())
BACKWARD = Entry("fftconv_backward", (("g", "T"), *_INPUTS), ("du", "dk", "dD", "dv", "dq", "dk_reverse"), ())


def met_by_each(u, k, k_reverse) -> tuple[int, int]:
    """The taps of each filter that rows of u meet. A prepared filter holds both."""
    filters = (k, k_reverse) if hasattr(k, "shape") else (k.k, k.k_reverse)
    return tuple(0 if f is None else min(u.shape[2], f.shape[1]) for f in filters)


def met(u, k, k_reverse) -> int:
    """The taps of the longer filter that rows of u meet."""
    return max(met_by_each(u, k, k_reverse))


#: the widest window that costs less directly than by a transform in one pass, and the log2 of the longest of these: a tap costs two
#: instructions a number (one product; a quarter of a load, which takes four times as long), a transform 40 and 8 loads and stores
DIRECT = 32
ONE_PASS = {"metal": max(_METAL), "cuda": max(_CUDA)}


def is_direct(u, k, k_reverse, dropout_mask, gelu: bool, head_dim: int) -> bool:
    """Whether `kernels.shortconv` computes the convolution tap by tap: where that is less work, and gates and a skip are all there is."""
    if dropout_mask is not None or gelu or head_dim > 1 or 0 in u.shape:
        return False
    taps = met_by_each(u, k, k_reverse)
    in_one_pass = log_m(u.shape[2], max(taps)) <= ONE_PASS[_language(u)]
    return shortconv.window(*taps) <= (DIRECT if in_one_pass else shortconv.LONGEST)


def _language(u) -> str:
    return "metal" if type(u).__module__.startswith("mlx") else "cuda"


def is_both_ways(k, k_reverse) -> bool:
    """Whether there is a filter of the future; a prepared filter holds its own."""
    return (k_reverse if hasattr(k, "shape") else k.k_reverse) is not None


def _serves(u, k, D=None, v=None, q=None, k_reverse=None, dropout_mask=None, *, gelu=False, head_dim=1) -> bool:
    """Something to do, and few taps or a transform that is not too long."""
    if 0 in u.shape:
        return False
    return is_direct(u, k, k_reverse, dropout_mask, gelu, head_dim) or size_of(u, k, k_reverse, head_dim)[0] <= LONGEST


def _serves_grad(_g, *arguments, **static) -> bool:
    return _serves(*arguments, **static)


def _sample() -> tuple[list, ...]:
    """Everything that a call may have, for rows that fill no transform."""
    rows, filters = (2, 3, 37), (3, 37)
    return (sample_values(*rows, seed=1), sample_values(*filters, seed=2), sample_values(3, seed=3), sample_values(*rows, seed=4),
            sample_values(*rows, seed=5), sample_values(*filters, seed=6), sample_values(2, 3, seed=7))


#: what it is, channels a head, heads, length, taps: calls of kernels that the sample does not reach
_MORE = (("two channels a head", 2, 2, 50, 50), ("2^6 + 2 numbers", 1, 2, 66, 66), ("the most points in one pass", 1, 1, 16300, 80),
         ("three passes", 1, 1, 40000, 80))


def _more() -> list[tuple[str, tuple[list, ...], dict]]:
    found = []
    for what, head_dim, heads, length, taps in _MORE:
        u, v, q = (sample_values(heads, heads * head_dim, length, seed=seed) for seed in (1, 4, 5))
        found.append((what, (u, sample_values(heads, taps, seed=2), None, v, q, None, None), {"head_dim": head_dim}))
    return found


def _more_grad() -> list[tuple[str, tuple[list, ...], dict]]:
    return [(what, (sample_values(len(given[0]), len(given[0][0]), len(given[0][0][0]), seed=8), *given), static)
            for what, given, static in _more()]


#: fftconv(u, k, D, v, q, k_reverse, dropout_mask, gelu, head_dim) -> y, as `ember_ml.ops.fftconv` has it
FFTCONV = KernelSpec("fftconv", (FORWARD,), None, _sample, registers=128, serves=_serves, more=_more)

#: fftconv_grad(g, and the same) -> gradients in u, k, D, v, q and k_reverse, None for what is not there. Those in u, v and q
#: have u's dtype, the others are float32.
FFTCONV_GRAD = KernelSpec("fftconv_grad", (BACKWARD,), None, lambda: (sample_values(2, 3, 37, seed=8), *_sample()), registers=168,
                          serves=_serves_grad, more=_more_grad)
