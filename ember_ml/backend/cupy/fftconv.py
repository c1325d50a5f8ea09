"""Launches the long convolution of cuda/fftconv.cu: forward, gradients, and the filters' spectra."""

from __future__ import annotations

from functools import cache
from typing import Any

import cupy
import numpy as np

from ember_ml.backend.cupy.arrays import C_TYPES, library_of
from ember_ml.kernels import fftconv as plans
from ember_ml.kernels import shortconv, source_text
from ember_ml.kernels.fftconv import CudaPlan, LongPlan, Plan

#: a cupy.ndarray, or what `arrays.use` has made known
Array = Any

_NULL = np.uint64(0)


@cache
def _kernel(name: str, arguments: str, dynamic: int = 0):
    """One kernel, compiled by itself: a process needs few of the many."""
    expression = f"{name}<{arguments}>"
    module = cupy.RawModule(code=source_text("cuda", "fftconv"), options=("-std=c++17",), name_expressions=[expression])
    kernel = module.get_function(expression)
    kernel.max_dynamic_shared_size_bytes = dynamic         # belongs to the kernel: all its launches ask for the same
    return kernel


def _started(kernel, blocks: int, threads: int, arguments, dynamic: int = 0):
    kernel((blocks,), (threads,), tuple(a if isinstance(a, np.generic) else library_of(a).argument(a) for a in arguments),
           shared_mem=dynamic)


def _launch(name: str, plan: CudaPlan, options: int, units: int, arguments, c_type: str = "", more: str = "", keep: int = 0):
    own = f"{plan.log_m}, {plan.log_points}, {plan.rows}, {str(plan.split).lower()}, {options}, {plan.blocks}"
    dynamic = plan.shared_bytes(keep)
    kernel = _kernel(name, ", ".join(filter(None, (c_type, own, more))), dynamic)
    _started(kernel, -(-units // plan.rows), plan.threads, arguments, dynamic)


_tables: dict[tuple, Array] = {}


def _factors(like: Array, make, *arguments) -> Array:
    """The factors that `make` makes, made once for each library and device."""
    library = library_of(like)
    key = (library, library.device(like), make, arguments)
    if key not in _tables:
        _tables[key] = library.floats(make(*arguments), like)
    return _tables[key]


def _table(plan: Plan, like: Array, outer: int = 0) -> Array:
    return _factors(like, plans.factors, plan.passes, outer)


def _rows(x: Array | None) -> tuple:
    """(array, batch stride, channel stride) for a kernel: any strides but along the row."""
    if x is None:
        return _NULL, np.uint64(0), np.uint64(0)
    library = library_of(x)
    strides = library.strides(x)
    if strides is None or strides[2] != 1 and x.shape[2] > 1:
        x = library.aligned(x)
        strides = library.strides(x)
    return x, *map(np.uint64, strides[:2])


def _floats(x: Array | None):
    return _NULL if x is None else library_of(x).aligned(library_of(x).cast(x, "float32"))


def _empty(shape, like: Array, dtype: str = "float32") -> Array:
    return library_of(like).empty(shape, dtype, like)


def _like(x: Array) -> Array:
    return _empty(tuple(x.shape), x, _name(x))


def _name(x: Array) -> str:
    return library_of(x).name(x)


def spectrum(plan: CudaPlan, k: Array, k_reverse: Array | None) -> Array:
    """The filters' transform (H, M, 2) in the order in which the plan's kernels read it."""
    heads = k.shape[0]
    out = _empty((heads, plan.m, 2), k)
    if isinstance(plan, LongPlan):
        _Long(plan, k).spectrum(k, k_reverse, out)
        return out
    _launch("fftconv_spectrum", plan, 0 if k_reverse is None else plans.REVERSE, heads,
            (_floats(k), _floats(k_reverse), _table(plan, k), out, np.uint32(heads), np.uint32(k.shape[1]),
             np.uint32(0 if k_reverse is None else k_reverse.shape[1])))
    return out


def forward(plan: CudaPlan, u, f, D=None, v=None, q=None, mask=None, gelu=False, tail=None, head_dim=1) -> Array:
    """y of `fftconv` for a spectrum f of `spectrum`; `tail` is the filter where it is longer than the plan by some numbers."""
    (batch, channels, length), heads = u.shape, u.shape[1] // head_dim
    kind = _name(u)
    y, D, mask = _written(u, head_dim), _floats(D), _floats(mask)
    options = plans.options(plan, length, v=v is not None, q=q is not None, D=D is not _NULL, mask=mask is not _NULL, gelu=gelu,
                            tail=tail is not None, head_dim=head_dim)
    tails, *_ = _tails(plan, options & plans.GATE_BEFORE, tail, None, u, v)
    if isinstance(plan, LongPlan):
        _Long(plan, u, options, head_dim).forward(u, f, D, v, q, mask, y, tails)
        return _cast(y, kind)
    (u, *us), (v_, *vs), (q_, *qs) = _rows(u), _rows(v), _rows(q)
    _launch("fftconv_forward", plan, options, batch * channels,
            (u, v_, q_, f, tails, D, mask, _table(plan, u), y, *map(np.uint32, (batch, heads, head_dim, length)), *us, *vs, *qs),
            C_TYPES[kind])
    return _cast(y, kind)


def _tails(plan, options, k, g, u, v=None, q=None, D=_NULL, mask=_NULL) -> tuple:
    """What is mended where the convolution has some numbers more than 2 M, for the forward and, with g, for its gradient:
    (B, H, TAILS) of y, the same of x, (H, TAILS) of k. All are null without k, the filter."""
    if k is None:
        return _NULL, _NULL, _NULL
    batch, heads, length = u.shape
    back = g is not None
    tails, ends, tap_ends = (_empty(shape, u) if there else _NULL for shape, there in
                             (((batch, heads, plans.TAILS), True), ((batch, heads, plans.TAILS), back), ((heads, plans.TAILS), back)))
    given = [_rows(x) for x in (g, u, v, q)]
    kernel = _kernel("fftconv_tail", f"{C_TYPES[_name(u)]}, {options & _OF_TAILS}, {str(back).lower()}", 4 * 256)
    _started(kernel, heads, 256, (*(x for x, *_ in given), _floats(k), D, mask, tails, ends, tap_ends,
                                  *map(np.uint32, (batch, heads, length, k.shape[1], 2 * plan.m)),
                                  *(s for _, *strides in given for s in strides)), 4 * 256)
    return tails, ends, tap_ends


#: options that the kernel of the tails looks at
_OF_TAILS = plans.GATE_BEFORE | plans.GATE_AFTER | plans.SKIP | plans.MASK | plans.GELU


def _written(u, head_dim):
    """For what a kernel writes of the shape of u: sums over the pairs of a head's channels are made in float32."""
    return _like(u) if head_dim == 1 else _empty(tuple(u.shape), u)


def _cast(x, kind: str):
    return x if x is None or x is _NULL else library_of(x).cast(x, kind)


def backward(plan: CudaPlan, g, u, f, taps, taps_reverse=0, D=None, v=None, q=None, mask=None, gelu=False, tail=None, head_dim=1):
    """(du, dv, dq, dk, dk_reverse) of `fftconv`; dv, dq and dk_reverse are None where there is none; dk is float32."""
    (batch, _, length), heads = u.shape, u.shape[1] // head_dim
    kind = _name(u)
    D, mask = _floats(D), _floats(mask)
    du, dv, dq = (None if x is None else _written(u, head_dim) for x in (u, v, q))
    options = plans.options(plan, length, v=v is not None, q=q is not None, D=D is not _NULL, mask=mask is not _NULL, gelu=gelu,
                            tail=tail is not None, head_dim=head_dim)
    dk = _empty((heads, taps), u)
    dk_reverse = _empty((heads, taps_reverse), u) if taps_reverse else None
    edges = _tails(plan, options, tail, g, u, v, q, D, mask)
    of_filter = options & plans.TAIL if taps > 1 else 0    # a prepared filter has no gradient, only its skip
    if isinstance(plan, LongPlan):
        _Long(plan, u, options, head_dim).backward(g, u, f, D, v, q, mask, du, dv, dq, dk, dk_reverse, edges, of_filter)
        return *(_cast(x, kind) for x in (du, dv, dq)), dk, dk_reverse
    tails, ends, tap_ends = edges
    (g, *gs), (u, *us), (v_, *vs), (q_, *qs) = _rows(g), _rows(u), _rows(v), _rows(q)
    parts = plan.parts(batch, heads)
    partial = _empty((heads, parts, plan.m, 2), u)
    kept = _NULL if plan.keep else _empty((heads, parts, plan.m, 2), u)
    table = _table(plan, u)
    _launch("fftconv_backward", plan, options, heads * parts,
            (g, u, v_, q_, f, tails, ends, D, mask, table, du, _NULL if dv is None else dv, _NULL if dq is None else dq,
             partial, kept, *map(np.uint32, (batch, heads, head_dim, length, parts)), *gs, *us, *vs, *qs),
            C_TYPES[kind], str(plan.keep), plan.keep)
    _launch("fftconv_filter_grad", plan, of_filter | (plans.REVERSE if taps_reverse else 0), heads,
            (partial, tap_ends, table, dk, dk_reverse if taps_reverse else _NULL,
             *map(np.uint32, (heads, taps, taps_reverse, parts))))
    return *(_cast(x, kind) for x in (du, dv, dq)), dk, dk_reverse


class _Long:
    """The kernels of a LongPlan, for arrays like one."""

    def __init__(self, plan: LongPlan, like: Array, options: int = 0, head_dim: int = 1):
        self.plan, self.options, self.like, self.head_dim, self.pairs = plan, options, like, head_dim, head_dim ** 2
        self.table = _table(plan.inner, like, plan.outer)
        self.columns_table = _factors(like, plans.column_factors, plan.outer, plan.inner.log_m)
        self.blocks = 1 << plan.outer

    def space(self, rows: int) -> Array:
        return _empty((rows, self.plan.m, 2), self.like)

    def columns(self, stage, rows, batch, heads, row, length, work, *, g=None, u=None, v=None, q=None, tails=_NULL, mask=_NULL,
                out=_NULL, dv=_NULL, taps_reverse=0, options=None, c_type=""):
        """`rows` rows from number `row` on, of which each head has `batch`; all pairs of each."""
        given = [_rows(x) for x in (g, u, v, q)]
        inner = self.plan.inner.log_m
        options = self.options if options is None else options
        kernel = _kernel("fftconv_columns", f"{c_type}, {self.plan.outer}, {inner}, {options}, fftconv::{stage}")
        _started(kernel, rows * max(1, (1 << inner) // 256), 256,
                 (*(x for x, *_ in given), tails, mask, self.columns_table, work, out, dv,
                  *map(np.uint32, (batch, heads, self.head_dim, row, length, taps_reverse)),
                  *(s for _, *strides in given for s in strides)))

    def rows(self, stage, units, batch, row, work, filter_=_NULL, D=_NULL, kept=_NULL, sums=_NULL):
        """`units` rows, or heads, from the row number `row` on; each pair is a row here."""
        options = self.options & plans.SKIP
        _launch("fftconv_rows", self.plan.inner, options, units * self.blocks,
                (filter_, D, self.table, work, kept, sums, np.uint32(batch), np.uint32(row)),
                more=f"{self.plan.outer}, fftconv::{stage}")

    def spectrum(self, k, k_reverse, out):
        heads, taps = k.shape
        options = plans.FOLD | plans.RAGGED | (0 if k_reverse is None else plans.REVERSE)
        self.columns("FILTER", heads, 1, heads, 0, taps, out, u=_filter_rows(k), v=_filter_rows(k_reverse), c_type="float",
                     taps_reverse=0 if k_reverse is None else k_reverse.shape[1], options=options)
        self.rows("SPECTRUM", heads, 1, 0, out)

    def forward(self, u, f, D, v, q, mask, y, tails):
        (batch, _, length), heads, pairs = u.shape, u.shape[1] // self.head_dim, self.pairs
        given, chunk = {"c_type": C_TYPES[_name(u)]}, min(self.plan.together(pairs), batch * heads)
        work = self.space(chunk * pairs)
        for row in range(0, batch * heads, chunk):
            rows = min(chunk, batch * heads - row)
            self.columns("SIGNAL", rows, batch, heads, row, length, work, u=u, v=v, **given)
            self.rows("CONVOLVE", rows * pairs, batch * pairs, row * pairs, work, f, D)
            self.columns("OUTPUT", rows, batch, heads, row, length, work, q=q, tails=tails, mask=mask, out=y, **given)

    def backward(self, g, u, f, D, v, q, mask, du, dv, dq, dk, dk_reverse, edges, of_filter):
        (batch, _, length), heads, (tails, ends, tap_ends) = u.shape, u.shape[1] // self.head_dim, edges
        each, chunk = batch * self.pairs, min(self.plan.together(batch * self.pairs, 2), heads)
        given = {"c_type": C_TYPES[_name(u)], "mask": mask}
        kept, work, sums = self.space(chunk * each), self.space(chunk * each), self.space(heads)
        again = self.options & (plans.GATE_AFTER | plans.GELU)
        for head in range(0, heads, chunk):
            count = min(chunk, heads - head)
            place, rows = (count * batch, batch, heads, head * batch, length), (count * each, each, head * each)
            self.columns("SIGNAL", *place, kept, u=u, v=v, **given)
            self.rows("TRANSFORM", *rows, kept)
            if again:
                self.rows("CONVOLUTION", *rows, work, f, D, kept)
                self.columns("TURN", *place, work, g=g, q=q, tails=tails, out=_NULL if dq is None else dq, **given)
            else:
                self.columns("GRADIENT", *place, work, g=g, **given)
            self.rows("ADJOINT", count, each, head * each, work, f, D, kept, sums)
            self.columns("BACK", *place, work, u=u, v=v, tails=ends, out=du, dv=_NULL if dv is None else dv, **given)
        self.rows("INVERSE", heads, 1, 0, sums)
        options = plans.FOLD | plans.RAGGED | of_filter | (0 if dk_reverse is None else plans.REVERSE)
        self.columns("FILTER_GRADIENT", heads, 1, heads, 0, dk.shape[1], sums, tails=tap_ends, out=dk,
                     dv=_NULL if dk_reverse is None else dk_reverse, taps_reverse=0 if dk_reverse is None else dk_reverse.shape[1],
                     options=options, c_type="float")


def _filter_rows(k):
    """(H, K) as the array (1, H, K) of one batch."""
    return None if k is None else _floats(k)[None]


def fftconv(u, k, D=None, v=None, q=None, k_reverse=None, dropout_mask=None, *, gelu=False, head_dim=1) -> Array:
    """The long convolution as `ember_ml.ops.fftconv` defines it, for what `ember_ml.kernels.fftconv.serves`.

    Args: as the op's; u, v and q may be slices of one array. Taps beyond the length have no effect. A prepared filter keeps
        its spectrum.

    Returns: (B, D, L) in u's dtype, computed in float32.
    """
    if plans.is_direct(u, k, k_reverse, dropout_mask, gelu, head_dim):
        return shortconv.forward(_gpu(), u, *_taps(u, k, k_reverse), v=v, q=q, skip=D)
    (plan, _), tail = _plans(u, k, k_reverse, head_dim)
    return forward(plan, u, _spectrum(plan, u, k, k_reverse), D, v, q, dropout_mask, gelu, tail, head_dim)


def fftconv_grad(g, u, k, D=None, v=None, q=None, k_reverse=None, dropout_mask=None, *, gelu=False, head_dim=1) -> tuple:
    """Gradients of `fftconv` for that of its output, in u, k, D, v, q and k_reverse; None for those that are not there.

    Those in k, D and k_reverse are float32, the others have u's dtype.
    """
    prepared = not hasattr(k, "shape")                     # no gradient flows into it
    if plans.is_direct(u, k, k_reverse, dropout_mask, gelu, head_dim):
        du, dv, dq, dk, dk_reverse, dD, _ = shortconv.backward(_gpu(), g, u, *_taps(u, k, k_reverse), v=v, q=q, skip=D)
        return du, None if prepared else _widened(dk, k), dD, dv, dq, None if prepared else _widened(dk_reverse, k_reverse)
    (plan, back), tail = _plans(u, k, k_reverse, head_dim)
    taps, taps_reverse = (0 if f is None or prepared else min(f.shape[1], u.shape[2]) for f in (k, k_reverse))
    if prepared and D is not None:
        taps = 1                                           # the skip is one more tap at lag 0
    du, dv, dq, dk, dk_reverse = backward(back, library_of(u).cast(g, _name(u)), u, _spectrum(plan, u, k, k_reverse), taps,
                                          taps_reverse, D, v, q, dropout_mask, gelu, tail, head_dim)
    dD = None if D is None else library_of(dk).copy(dk[:, 0])
    return du, None if prepared else _widened(dk, k), dD, dv, dq, _widened(dk_reverse, k_reverse)


def _taps(u, k, k_reverse) -> tuple:
    """The taps of both filters that u meets, in float32."""
    own = (k, k_reverse) if hasattr(k, "shape") else (None if f is None else f.data for f in (k.k, k.k_reverse))
    return tuple(None if f is None else library_of(f).cast(f[:, :u.shape[2]], "float32") for f in own)


def _plans(u, k, k_reverse, head_dim):
    """The plans of forward and backward, and the filter if its last taps have to be mended."""
    size, tailed = plans.size_of(u, k, k_reverse, head_dim)
    return plans.cuda_plans(size), (k if hasattr(k, "shape") else k.k.data)[:, :u.shape[2]] if tailed else None


def _spectrum(plan, u, k, k_reverse):
    """The transform of the taps that u meets; a prepared filter makes it once for each plan and length."""
    length = u.shape[2]
    if hasattr(k, "shape"):
        return spectrum(plan, k[:, :length], None if k_reverse is None else k_reverse[:, :length])
    own, reverse = k.k.data, None if k.k_reverse is None else k.k_reverse.data
    return k.spectrum(("cuda", plan.log_m, length), lambda: (_spectrum(plan, u, own, reverse),))[0]


def _widened(dk, k):
    """Zeros for the taps that met nothing."""
    if k is None or dk.shape == k.shape:
        return dk
    wide = library_of(k).full(tuple(k.shape), 0, "float32", k)
    wide[:, :dk.shape[1]] = dk
    return wide


def _gpu():
    from ember_ml.backend.cupy.kernels import Cuda
    return Cuda()
