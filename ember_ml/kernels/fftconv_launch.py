"""Launches the long convolution by transforms, on Metal and on CUDA: the filters' spectrum, forward and gradients of a plan."""

from __future__ import annotations

from ember_ml.kernels import fftconv_plan as plans
from ember_ml.kernels.fftconv_plan import TAILS, LongPlan, Plan
from ember_ml.kernels.gpu import Array, Gpu, Groups, Output
from ember_ml.kernels.spec import TemplateEntry

#: bits of a kernel's OPTIONS, as the kernels name them
GATE_BEFORE, GATE_AFTER, SKIP, MASK, GELU, REVERSE, FOLD, RAGGED, TAIL, PAIRS = (1 << i for i in range(10))


def _f32(names: str) -> tuple[tuple[str, str], ...]:
    return tuple((name, "float32") for name in names.split())


_U, _SIZES = (("u", "T"), ("v", "T"), ("q", "T")), ("batch", "heads", "head_dim", "length")
_GU = (("g", "T"), *_U)

SPECTRUM = TemplateEntry("fftconv_spectrum", _f32("k k_reverse table"), ("out",), (), "float", ("heads", "taps", "taps_reverse"))
FORWARD = TemplateEntry("fftconv_forward", (*_U, *_f32("filter tails D mask table")), ("y",), (), "float", _SIZES, strided=3, strides=2)
BACKWARD = TemplateEntry("fftconv_backward", (*_GU, *_f32("filter tails ends D mask table")), ("du", "dv", "dq", "partial", "kept"), (),
                         "float", (*_SIZES, "parts"), strided=4, strides=2)
FILTER_GRAD = TemplateEntry("fftconv_filter_grad", _f32("partial ends table"), ("dk", "dk_reverse"), (), "float",
                            ("heads", "taps", "taps_reverse", "parts"))
MEND = TemplateEntry("fftconv_tail", (*_GU, *_f32("k D mask")), ("tails", "ends", "tap_ends"), (), "float",
                     ("batch", "heads", "length", "taps", "points"), strided=4, strides=2)

#: CUDA's kernels update a workspace, of which they are given some rows; Metal's write a new one, of all
COLUMNS = {"metal": TemplateEntry("fftconv_columns", (*_GU, *_f32("tails mask table work")), ("to", "out", "dv"), (), "float",
                                  (*_SIZES, "taps_reverse"), strided=4),
           "cuda": TemplateEntry("fftconv_columns", (*_GU, *_f32("tails mask table")), ("work", "out", "dv"), (), "",
                                 (*_SIZES[:3], "row", "length", "taps_reverse"), strided=4, strides=2)}
ROWS = {"metal": TemplateEntry("fftconv_rows", _f32("filter D table work kept"), ("to", "sums"), (), "float", ("batch",)),
        "cuda": TemplateEntry("fftconv_rows", _f32("filter D table"), ("work", "kept", "sums"), (), "float", ("batch", "row"))}


def _floats(gpu: Gpu, x: Array | None) -> Array | None:
    return None if x is None else gpu.contiguous(gpu.cast(x, "float32"))


def options(m: int, length: int, v, q, D, mask, gelu: bool, tailed: bool, head_dim: int) -> int:
    """What there is, arrays or None, for rows of `length` in a transform of m points."""
    return (GATE_BEFORE * (v is not None) + GATE_AFTER * (q is not None) + SKIP * (D is not None) + MASK * (mask is not None) + GELU * gelu
            + FOLD * (length > m) + RAGGED * (length != m) + TAIL * tailed + PAIRS * (head_dim > 1))


def _filter_options(reverse, options: int = 0) -> int:
    return options | FOLD | RAGGED | (REVERSE if reverse else 0)


def _written(gpu: Gpu, x: Array | None, head_dim: int) -> Output | None:
    """What a kernel writes of the shape of x: sums over the pairs of a head's channels are made in float32."""
    return None if x is None else (tuple(x.shape), gpu.dtype(x) if head_dim == 1 else "float32")


def _launch_rows(gpu: Gpu, entry: TemplateEntry, plan: Plan, options: int, rows: int, inputs, outputs, numbers, more: str = "", keep: int = 0,
                 **how) -> tuple[Array | None, ...]:
    """A kernel of rows that fit into a threadgroup."""
    return gpu.launch_template(entry, inputs, outputs, plan.groups(rows), numbers, template=plan.template(gpu.language, options) + more,
                               shared=plan.shared_floats(keep), **how)


def _table(gpu: Gpu, plan: Plan, like: Array) -> Array:
    return gpu.constants(plans.factors, (plan.passes,), like)


def spectrum(gpu: Gpu, plan: Plan | LongPlan, k: Array, k_reverse: Array | None) -> Array:
    """The filters' transform (H, M, 2) in the order in which the plan's kernels read it."""
    (heads, taps), taps_reverse = k.shape, 0 if k_reverse is None else k_reverse.shape[1]
    k, k_reverse = _floats(gpu, k), _floats(gpu, k_reverse)
    if isinstance(plan, LongPlan):
        return _Long(gpu, plan, k).spectrum(k, k_reverse)
    return _launch_rows(gpu, SPECTRUM, plan, _filter_options(taps_reverse), heads, [k, k_reverse, _table(gpu, plan, k)],
                        [((heads, plan.m, 2), "float32")], (heads, taps, taps_reverse))[0]


def forward(gpu: Gpu, plan: Plan | LongPlan, u, f, D=None, v=None, q=None, mask=None, gelu=False, tail=None, head_dim=1) -> Array:
    """y of `fftconv` for a spectrum f of `spectrum`; `tail` is the filter where it is longer than the plan by some numbers."""
    (batch, channels, length), own = u.shape, gpu.dtype(u)
    D, mask, bits = _floats(gpu, D), _floats(gpu, mask), options(plan.m, length, v, q, D, mask, gelu, tail is not None, head_dim)
    tails, *_ = _tails(gpu, plan, bits & GATE_BEFORE, tail, None, u, v)
    if isinstance(plan, LongPlan):
        return gpu.cast(_Long(gpu, plan, u, bits, head_dim).forward(u, f, D, v, q, mask, tails), own)
    y, = _launch_rows(gpu, FORWARD, plan, bits, batch * channels, [u, v, q, f, tails, D, mask, _table(gpu, plan, u)],
                      [_written(gpu, u, head_dim)], (batch, channels // head_dim, head_dim, length), types=(own,))
    return gpu.cast(y, own)


def _tails(gpu: Gpu, plan, options: int, k, g, u, v=None, q=None, D=None, mask=None) -> tuple:
    """What is mended where the convolution has some numbers more than 2 M, for the forward and, with g, for its gradient:
    (B, H, TAILS) of y, the same of x, (H, TAILS) of k. All are None without k, the filter."""
    if k is None:
        return None, None, None
    batch, heads, length = u.shape
    options &= GATE_BEFORE | GATE_AFTER | SKIP | MASK | GELU                               # which is what it looks at
    edges, back = ((batch, heads, TAILS), "float32"), g is not None
    template = (f"fftconv::Options<{options}>" if gpu.language == "metal" else str(options)) + f", {str(back).lower()}"
    return gpu.launch_template(MEND, [g, u, v, q, _floats(gpu, k), D, mask],
                               [edges, edges if back else None, ((heads, TAILS), "float32") if back else None], Groups(heads, 256),
                               (batch, heads, length, k.shape[1], 2 * plan.m), types=(gpu.dtype(u),), template=template, shared=256)


def backward(gpu: Gpu, plan: Plan | LongPlan, g, u, f, taps: int, taps_reverse: int = 0, D=None, v=None, q=None, mask=None, gelu=False,
             tail=None, head_dim=1) -> tuple[Array | None, ...]:
    """(du, dv, dq, dk, dk_reverse) of `fftconv`, None for what is not there, or has no taps; dk and dk_reverse are float32."""
    (batch, channels, length), own = u.shape, gpu.dtype(u)
    heads, D, mask = channels // head_dim, _floats(gpu, D), _floats(gpu, mask)
    bits = options(plan.m, length, v, q, D, mask, gelu, tail is not None, head_dim)
    edges = _tails(gpu, plan, bits, tail, g, u, v, q, D, mask)
    of_filter = _filter_options(taps_reverse, bits & TAIL if taps > 1 else 0)              # a prepared filter has its skip alone
    filters = [((heads, taps), "float32") if taps else None, ((heads, taps_reverse), "float32") if taps_reverse else None]
    if isinstance(plan, LongPlan):
        *rows, dk, dk_reverse = _Long(gpu, plan, u, bits, head_dim).backward(g, u, f, D, v, q, mask, edges, filters, of_filter)
        return *(None if x is None else gpu.cast(x, own) for x in rows), dk, dk_reverse
    (tails, ends, tap_ends), parts, table = edges, plan.parts(batch, heads), _table(gpu, plan, u)
    keep, template = (plan.keep, f", {plan.keep}") if gpu.language == "cuda" else (0, "")
    space = (heads, parts, plan.m, 2), "float32"
    *rows, partial, _ = _launch_rows(
        gpu, BACKWARD, plan, bits, heads * parts, [g, u, v, q, f, tails, ends, D, mask, table],
        [*(_written(gpu, x, head_dim) for x in (u, v, q)), space, None if keep else space], (batch, heads, head_dim, length, parts),
        template, keep, types=(own,))
    dk = _launch_rows(gpu, FILTER_GRAD, plan, of_filter, heads, [partial, tap_ends, table], filters,
                      (heads, taps, taps_reverse, parts)) if taps else filters
    return *(None if x is None else gpu.cast(x, own) for x in rows), *dk


#: options that a stage of the columns looks at, besides those of its rows' ends and pairs
_LOOKED_AT = {"SIGNAL": GATE_BEFORE, "GRADIENT": MASK, "FILTER": REVERSE, "BACK": GATE_BEFORE | TAIL, "FILTER_GRADIENT": REVERSE | TAIL,
              "OUTPUT": GATE_AFTER | MASK | GELU | TAIL, "TURN": GATE_AFTER | MASK | GELU | TAIL}


class _Long:
    """The kernels of a LongPlan, for arrays like one.

    Where arrays may be written again (CUDA), the stages update a workspace of some rows, and fill outputs part by part.
    """

    def __init__(self, gpu: Gpu, plan: LongPlan, like: Array, options: int = 0, head_dim: int = 1):
        self.gpu, self.plan, self.options, self.head_dim, self.pairs = gpu, plan, options, head_dim, head_dim ** 2
        self.own, self.again = gpu.dtype(like), gpu.language == "cuda"
        self.table = gpu.constants(plans.factors, (plan.inner.passes, plan.outer), like)
        self.column_table = (gpu.constants(plans.factors, (plan.tiles,), like) if plan.tiles and not self.again else
                             gpu.constants(plans.column_factors, (plan.outer, plan.inner.log_m), like))

    def space(self, rows: int) -> Output:
        return (rows, self.plan.m, 2), "float32"

    def over(self, work: Array) -> Array | Output:
        """Where a stage that reads a workspace writes."""
        return work if self.again else (tuple(work.shape), "float32")

    def columns(self, stage: str, place, *, work=None, to=None, out=None, dv=None, g=None, u=None, v=None, q=None, tails=None, mask=None,
                taps_reverse=0, options=None, own=None) -> tuple:
        """(workspace, out, dv) of `place`: (rows, batch, heads, number of the first row, length); all pairs of each row."""
        rows, batch, heads, row, length = place
        options = (self.options if options is None else options) & (_LOOKED_AT[stage] | FOLD | RAGGED | PAIRS)
        template, groups, shared = self.plan.columns(self.gpu.language, options)
        inputs = [g, u, v, q, tails, mask, self.column_table, *([] if self.again else [work])]
        return self.gpu.launch_template(
            COLUMNS[self.gpu.language], inputs, [work if self.again and to is None else to, out, dv], Groups(rows * groups, 256),
            (batch, heads, self.head_dim, *((row,) if self.again else ()), length, taps_reverse), types=(own or self.own,),
            template=f"{template}, fftconv::{stage}", shared=shared)

    def rows(self, stage: str, place, work, to, f=None, D=None, kept=None, sums=None) -> tuple[Array, Array | None]:
        """(workspace, sums) of `place`: (rows or heads, rows of a head, number of the first row); each pair is a row here."""
        (units, batch, row), inner = place, self.plan.inner
        inputs, outputs, numbers = [f, D, self.table, work, kept], [to, sums], (batch,)
        if self.again:
            inputs, outputs, numbers = inputs[:3], [to, kept, sums], (batch, row)
        to, *_, sums = self.gpu.launch_template(
            ROWS[self.gpu.language], inputs, outputs, inner.groups(units << self.plan.outer), numbers, shared=inner.shared_floats(),
            template=f"{inner.template(self.gpu.language, 0 if D is None else SKIP, self.plan.outer)}, fftconv::{stage}")
        return to, sums

    def spectrum(self, k: Array, k_reverse: Array | None) -> Array:
        (heads, taps), reverse = k.shape, k_reverse is not None
        work, *_ = self.columns("FILTER", (heads, 1, heads, 0, taps), to=self.space(heads), u=k[None],
                                v=k_reverse[None] if reverse else None, taps_reverse=k_reverse.shape[1] if reverse else 0,
                                options=_filter_options(reverse))
        return self.rows("SPECTRUM", (heads, 1, 0), work, self.over(work))[0]

    def forward(self, u, f, D, v, q, mask, tails) -> Array:
        (batch, _, length), heads, pairs = u.shape, u.shape[1] // self.head_dim, self.pairs
        chunk = min(self.plan.together(pairs), batch * heads) if self.again else batch * heads
        work, y = self.space(chunk * pairs), _written(self.gpu, u, self.head_dim)
        for row in range(0, batch * heads, chunk):
            place = min(chunk, batch * heads - row), batch, heads, row, length
            work, *_ = self.columns("SIGNAL", place, to=work, u=u, v=v)
            work, _ = self.rows("CONVOLVE", (place[0] * pairs, batch * pairs, row * pairs), work, self.over(work), f, D)
            _, y, _ = self.columns("OUTPUT", place, work=work, out=y, q=q, tails=tails, mask=mask)
        return y

    def backward(self, g, u, f, D, v, q, mask, edges, filters, of_filter) -> tuple:
        (batch, _, length), heads, (tails, ends, tap_ends) = u.shape, u.shape[1] // self.head_dim, edges
        each, (du, dv, dq) = batch * self.pairs, (_written(self.gpu, x, self.head_dim) for x in (u, v, q))
        chunk = min(self.plan.together(each, 2), heads) if self.again else heads
        kept, work, sums = self.space(chunk * each), self.space(chunk * each), self.space(heads)
        for head in range(0, heads, chunk):
            count = min(chunk, heads - head)
            place, rows = (count * batch, batch, heads, head * batch, length), (count * each, each, head * each)
            kept, *_ = self.columns("SIGNAL", place, to=kept, u=u, v=v)
            kept, _ = self.rows("TRANSFORM", rows, kept, self.over(kept))
            if self.options & (GATE_AFTER | GELU):         # the forward's output is needed again
                work, _ = self.rows("CONVOLUTION", rows, kept, work, f, D, kept)
                work, dq, _ = self.columns("TURN", place, work=work, to=self.over(work), out=dq, g=g, q=q, tails=tails, mask=mask)
            else:
                work, *_ = self.columns("GRADIENT", place, to=work, g=g, mask=mask)
            work, sums = self.rows("ADJOINT", (count, each, head * each), work, self.over(work), f, D, kept, sums)
            _, du, dv = self.columns("BACK", place, work=work, out=du, dv=dv, u=u, v=v, tails=ends)
        dk, dk_reverse = filters
        if dk is not None:
            sums, _ = self.rows("INVERSE", (heads, 1, 0), sums, self.over(sums))
            taps, taps_reverse = dk[0][1], 0 if dk_reverse is None else dk_reverse[0][1]
            _, dk, dk_reverse = self.columns("FILTER_GRADIENT", (heads, 1, heads, 0, taps), work=sums, out=dk, dv=dk_reverse, tails=tap_ends,
                                             taps_reverse=taps_reverse, options=of_filter, own="float32")
        return du, dv, dq, dk, dk_reverse
