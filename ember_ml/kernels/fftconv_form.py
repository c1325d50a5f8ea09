"""Which of the long convolution's kernels a call takes: by its length, its taps and what it has. Each is compiled for itself.

And a small call that takes the same ones, for the check at their first use.
"""

from __future__ import annotations

from typing import NamedTuple

from ember_ml.kernels import fftconv_plan as plans
from ember_ml.kernels import shortconv
from ember_ml.kernels.fftconv_launch import FOLD, GATE_AFTER, GATE_BEFORE, GELU, MASK, PAIRS, RAGGED, SKIP, TAIL, options
from ember_ml.kernels.spec import Prepared, Sample, sample_values


class Transform(NamedTuple):
    """The form of a convolution by a transform.

    Args:
        log_m: log2 of its points. options: bits of the kernels' OPTIONS, with how the rows end in it.
        reverse: there is a filter of the future. prepared: a gradient that flows into no filter.
    """

    log_m: int
    options: int
    reverse: bool
    prepared: bool

    def __str__(self) -> str:
        m, bits = 1 << self.log_m, self.options
        least, most = (m + 1, 2 * m) if bits & FOLD else (1, m)
        rows = f"{least} to {most - (not bits & FOLD)}" if bits & RAGGED else f"{most}"
        words = ((bits & GATE_BEFORE, "a gate before"), (bits & GATE_AFTER, "a gate after"), (bits & SKIP, "skip"), (bits & MASK, "dropout mask"),
                 (bits & GELU, "gelu"), (self.reverse, "a filter of the future"), (bits & PAIRS, "several channels a head"),
                 (bits & TAIL, "some numbers mended"), (self.prepared, "a prepared filter"))
        return ", ".join((f"rows of {rows} numbers by a transform of {m} points", *(word for there, word in words if there)))

    def sizes(self) -> tuple[int, int]:
        """(length, taps) that end in the transform as the form says."""
        m = 1 << self.log_m
        if not self.options & FOLD:
            return m - 3 * bool(self.options & RAGGED), m // 2 + 3
        return (m + 2, m + 2) if self.options & TAIL else (3 * m // 2 - 1, m // 2 + 2)


class Direct(NamedTuple):
    """The form of a convolution tap by tap."""

    taps: shortconv.Taps

    def __str__(self) -> str:
        return f"{self.taps}, tap by tap"

    @property
    def options(self) -> int:
        """Those of `Transform` for what there is."""
        bits = ((shortconv.GATE_BEFORE, GATE_BEFORE), (shortconv.GATE_AFTER, GATE_AFTER), (shortconv.SKIP, SKIP))
        return sum(bit for own, bit in bits if self.taps.options & own)


Form = Transform | Direct


def filters(k, k_reverse) -> tuple:
    """Both filters; a prepared one holds them, as tensors."""
    return (k, k_reverse) if hasattr(k, "shape") else (k.k, k.k_reverse)


def met_taps(u, k, k_reverse) -> tuple[int, int]:
    """The taps of each filter that rows of u meet."""
    length, (k, k_reverse) = u.shape[2], filters(k, k_reverse)
    return min(length, k.shape[1]), 0 if k_reverse is None else min(length, k_reverse.shape[1])


def size(u, k, k_reverse, head_dim: int) -> tuple[int, bool]:
    """`transform_size` for the arguments of `fftconv`."""
    both_ways = filters(k, k_reverse)[1] is not None
    return plans.transform_size(u.shape[2], max(met_taps(u, k, k_reverse)), both_ways or head_dim > 1)


#: the widest window that costs less directly than by a transform in one pass: a tap costs two instructions a number (one product; a
#: quarter of a load, which takes four times as long), a transform 40 and 8 loads and stores
DIRECT = 32


def is_direct(u, k, k_reverse, dropout_mask, gelu: bool, head_dim: int) -> bool:
    """Whether `kernels.shortconv` computes the convolution tap by tap: where that is less work, and gates and a skip are all there is."""
    if dropout_mask is not None or gelu or head_dim > 1 or 0 in u.shape:
        return False
    taps = met_taps(u, k, k_reverse)
    in_one_pass = plans.log_m(u.shape[2], max(taps)) <= plans.ONE_PASS[_language(u)]
    return shortconv.window(*taps) <= (DIRECT if in_one_pass else shortconv.LONGEST)


def _language(u) -> str:
    return "metal" if type(u).__module__.startswith("mlx") else "cuda"


def form(u, k, D=None, v=None, q=None, k_reverse=None, dropout_mask=None, *, gelu=False, head_dim=1) -> Form | None:
    """Of a call with something to do, few taps or a transform that is not too long, and gates of u's dtype: the kernels read them as that."""
    if 0 in u.shape or v is not None and v.dtype != u.dtype or q is not None and q.dtype != u.dtype:
        return None
    if is_direct(u, k, k_reverse, dropout_mask, gelu, head_dim):
        return Direct(shortconv.form(*met_taps(u, k, k_reverse), v, q, D))
    log_m, tailed = size(u, k, k_reverse, head_dim)
    if log_m > plans.LONGEST:
        return None
    log_m = max(log_m, plans.SHORTEST)
    bits = options(1 << log_m, u.shape[2], v, q, D, dropout_mask, gelu, tailed, head_dim)
    return Transform(log_m, bits, filters(k, k_reverse)[1] is not None, False)


def form_grad(_g, u, k, *arguments, **static) -> Form | None:
    """The same of its gradient."""
    own = form(u, k, *arguments, **static)
    return own._replace(prepared=True) if isinstance(own, Transform) and not hasattr(k, "shape") else own


#: rows that are longer stand in a sample alone, which takes some milliseconds
_LONG = 4096


def sample(form: Form) -> Sample:
    """One head of two sequences, over which the filters' gradient is summed; of one where rows are long."""
    bits, heads, head_dim = form.options, 1, 2 if form.options & PAIRS else 1
    if isinstance(form, Direct):
        # a wide window is convolved directly only where rows are longer than one pass
        length, (taps, ahead) = 71 if form.taps.room <= DIRECT else (2 << max(plans.ONE_PASS.values())) + 7, form.taps.sizes()
    else:
        (length, taps), ahead = form.sizes(), form.sizes()[1] if form.reverse else 0
    rows = (2 if length <= _LONG else 1, heads * head_dim, length)

    def values(bit, *shape, seed):
        return sample_values(*shape, seed=seed) if bits & bit else None

    largest = max(taps, ahead) ** -0.5                     # sums of about 1, where a gelu bends
    k = sample_values(heads, max(taps, 1), seed=2, largest=largest)
    k_reverse = sample_values(heads, ahead, seed=6, largest=largest) if ahead else None
    if isinstance(form, Transform) and form.prepared:
        k, k_reverse = Prepared(k, k_reverse), None
    return Sample((sample_values(*rows, seed=1), k, values(SKIP, heads, seed=3), values(GATE_BEFORE, *rows, seed=4),
                   values(GATE_AFTER, *rows, seed=5), k_reverse, values(MASK, rows[0], heads, seed=7)),
                  {"gelu": bool(bits & GELU), "head_dim": head_dim})


def sample_grad(form: Form) -> Sample:
    """The same of its gradient."""
    (u, *rest), static = sample(form)
    return Sample((sample_values(*u.shape, seed=8), u, *rest), static)


_GATES = GATE_BEFORE | GATE_AFTER

#: everything that a call may have; several channels a head; 2^6 + 2 numbers; the most points of one pass on Metal; three passes; tap by tap
FORMS = (Transform(6, _GATES | SKIP | MASK | GELU | RAGGED, True, False), Transform(6, _GATES | PAIRS | RAGGED, False, False),
         Transform(6, _GATES | FOLD | RAGGED | TAIL, False, False), *(Transform(size, _GATES | RAGGED, False, False) for size in (13, 15)),
         Direct(shortconv.Taps(8, shortconv.GATE_BEFORE | shortconv.GATE_AFTER | shortconv.SKIP, True, True)))
