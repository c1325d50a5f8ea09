"""Launches the long convolution of metal/fftconv.metal: forward, gradients, and the filters' spectra."""

from __future__ import annotations

import re
from functools import cache, lru_cache

import mlx.core as mx

from ember_ml.kernels import fftconv as plans
from ember_ml.kernels import shortconv, source_text
from ember_ml.kernels.fftconv import LongPlan, Plan
from ember_mlx.turns import in_turns


@cache
def _kernel(name: str, template: str, shared: int, inputs: tuple[str, ...], outputs: tuple[str, ...], arguments: str):
    """One kernel. MLX compiles by the name, so that it says all that the text depends on."""
    memory = f"threadgroup float2 shared[{shared // 2}]; " if shared else ""
    source = (f"{memory}fftconv::{name}<{template}>({arguments}, {'(threadgroup float*)shared, ' if shared else ''}"
              "threadgroup_position_in_grid.x, thread_position_in_threadgroup.x);")
    own = re.sub(r"\W+", "_", template.replace("fftconv::", "")).strip("_")
    return mx.fast.metal_kernel(name=f"fftconv_{name}_{own}", input_names=inputs, output_names=outputs, source=source,
                                header=source_text("metal", "fftconv"), ensure_row_contiguous=False)


def _launch(name, template, shared, groups, threads, inputs: dict, outputs: dict, arguments: str) -> list[mx.array]:
    """Arrays of the (shape, dtype) in `outputs`; `arguments` is how the function is called, with the inputs' names."""
    given = {n: _number(x) if isinstance(x, int) else x for n, x in inputs.items()}
    shapes, dtypes = zip(*outputs.values())
    return _kernel(name, template, shared, tuple(given), tuple(outputs), arguments)(
        inputs=list(given.values()), grid=(groups * threads, 1, 1), threadgroup=(threads, 1, 1), output_shapes=list(shapes),
        output_dtypes=list(dtypes))


@lru_cache(maxsize=256)
def _number(value: int) -> mx.array:
    return mx.array(value, mx.uint32)


def _own(plan: Plan, options: int, outer: int = 0) -> str:
    more = f", {outer}" if outer else ""
    return f"fftconv::Plan<{plan.log_m}, {plan.log_points}, {plan.rows}, {str(plan.split).lower()}, {options}{more}>"


def _launch_rows(name, plan: Plan, options, units, inputs, outputs, arguments) -> list[mx.array]:
    """A kernel of rows that fit into a threadgroup."""
    return _launch(name, _own(plan, options), plan.rows * plan.row_floats, -(-units // plan.rows), plan.threads, inputs, outputs,
                   arguments)


@cache
def _table(passes: tuple[int, ...], outer: int = 0) -> mx.array:
    return mx.array(plans.factors(passes, outer), mx.float32)


@cache
def _column_table(outer: int, log_inner: int) -> mx.array:
    return mx.array(plans.column_factors(outer, log_inner), mx.float32)


def _floats(x: mx.array | None) -> mx.array | None:
    return None if x is None else mx.contiguous(x.astype(mx.float32))


def _there(**arrays) -> dict:
    return {name: x for name, x in arrays.items() if x is not None}


def _strides(name: str) -> str:
    return f"fftconv::Strides{{{', '.join(f'size_t({name}_strides[{axis}])' for axis in range(3))}}}"


def spectrum(plan: Plan, k: mx.array, k_reverse: mx.array | None) -> mx.array:
    """The filters' transform (H, M, 2) in the order in which the plan's kernels read it."""
    if isinstance(plan, LongPlan):
        return _Long(plan).spectrum(_floats(k), _floats(k_reverse))
    inputs = _there(k=_floats(k), k_reverse=_floats(k_reverse), table=_table(plan.passes))
    reverse = "k" if k_reverse is None else "k_reverse"
    options = plans.FOLD | plans.RAGGED | (0 if k_reverse is None else plans.REVERSE)
    out, = _launch_rows("spectrum", plan, options, k.shape[0], inputs, {"out": ((k.shape[0], plan.m, 2), mx.float32)},
                        f"k, {reverse}, table, out, uint(k_shape[0]), int(k_shape[1]), int({reverse}_shape[1])")
    return out


def _options(plan, length, v, q, D, mask, gelu, tail, head_dim) -> int:
    return plans.options(plan, length, v=v is not None, q=q is not None, D=D is not None, mask=mask is not None, gelu=gelu,
                         tail=tail is not None, head_dim=head_dim)


def _written(u, head_dim) -> tuple:
    """Shape and dtype of what a kernel writes like u: sums over the pairs of a head's channels are made in float32."""
    return u.shape, u.dtype if head_dim == 1 else mx.float32


def _cast(x, like):
    return None if x is None else x.astype(like.dtype)


def forward(plan: Plan, u, f, D=None, v=None, q=None, mask=None, gelu=False, tail=None, head_dim=1) -> mx.array:
    """y of `fftconv` for a spectrum f of `spectrum`; `tail` is the filter where it is longer than the plan by some numbers."""
    options, D, mask = _options(plan, u.shape[2], v, q, D, mask, gelu, tail, head_dim), _floats(D), _floats(mask)
    tails, = _tails(plan, options & plans.GATE_BEFORE, tail, None, u, v)
    if isinstance(plan, LongPlan):
        return _cast(_Long(plan, options, head_dim).forward(u, f, D, v, q, mask, tails), u)
    inputs = {**_there(u=u, v=v, q=q, f=f, tails=tails, D=D, mask=mask), "table": _table(plan.passes), "head_dim": head_dim}
    v_, q_ = (name if name in inputs else "u" for name in ("v", "q"))
    tails_, D_, mask_ = (name if name in inputs else "f" for name in ("tails", "D", "mask"))
    y, = _launch_rows("forward", plan, options, u.shape[0] * u.shape[1], inputs, {"y": _written(u, head_dim)},
                      f"u, {v_}, {q_}, f, {tails_}, {D_}, {mask_}, table, y, uint(u_shape[0]), uint(u_shape[1]) / head_dim, head_dim, "
                      f"int(u_shape[2]), {_strides('u')}, {_strides(v_)}, {_strides(q_)}")
    return _cast(y, u)


#: options that the kernel of the tails looks at
_OF_TAILS = plans.GATE_BEFORE | plans.GATE_AFTER | plans.SKIP | plans.MASK | plans.GELU


def _tails(plan, options, k, g, u, v=None, q=None, D=None, mask=None) -> list[mx.array] | tuple:
    """What is mended where the convolution has some numbers more than 2 M, for the forward and, with g, for its gradient:
    (B, H, TAILS) of y, the same of x, (H, TAILS) of k. All are None without k, the filter."""
    if k is None:
        return (None,) if g is None else (None, None, None)
    batch, heads, length = u.shape
    inputs = {**_there(g=g, u=u, v=v, q=q, D=D, mask=mask), "k": _floats(k), "batch": batch, "heads": heads, "length": length,
              "taps": k.shape[1], "points": 2 * plan.m}
    g_, v_, q_, D_, mask_ = (n if n in inputs else other for n, other in (("g", "u"), ("v", "u"), ("q", "u"), ("D", "k"), ("mask", "k")))
    outputs = {"tails": ((batch, heads, plans.TAILS), mx.float32)}
    if g is not None:
        outputs |= {"ends": outputs["tails"], "tap_ends": ((heads, plans.TAILS), mx.float32)}
    own = f"fftconv::Options<{options & _OF_TAILS}>, {str(g is not None).lower()}"
    return _launch("tail", own, 256, heads, 256, inputs, outputs,
                   f"{g_}, u, {v_}, {q_}, k, {D_}, {mask_}, tails, {'tails, tails' if g is None else 'ends, tap_ends'}, batch, heads, "
                   f"int(length), int(taps), int(points), {', '.join(map(_strides, (g_, 'u', v_, q_)))}")


def backward(plan: Plan, g, u, f, taps, taps_reverse=0, D=None, v=None, q=None, mask=None, gelu=False, tail=None, head_dim=1):
    """(du, dv, dq, dk, dk_reverse) of `fftconv`; dv, dq and dk_reverse are None where there is none; dk is float32."""
    (batch, _, length), heads = u.shape, u.shape[1] // head_dim
    options, D, mask = _options(plan, length, v, q, D, mask, gelu, tail, head_dim), _floats(D), _floats(mask)
    edges = _tails(plan, options, tail, g, u, v, q, D, mask)
    of_filter = plans.FOLD | plans.RAGGED | (plans.REVERSE if taps_reverse else 0)
    if taps > 1:                                           # a prepared filter has no gradient, only its skip
        of_filter |= options & plans.TAIL
    if isinstance(plan, LongPlan):
        *rows, dk, dk_reverse = _Long(plan, options, head_dim).backward(g, u, f, taps, taps_reverse, D, v, q, mask, edges, of_filter)
        return *(_cast(x, u) for x in rows), dk, dk_reverse
    tails, ends, tap_ends = edges
    parts, table = plan.parts(batch, heads), _table(plan.passes)
    inputs = {**_there(g=g, u=u, v=v, q=q, f=f, D=D, mask=mask, tails=tails, ends=ends), "table": table, "parts": parts,
              "head_dim": head_dim}
    v_, q_ = (name if name in inputs else "u" for name in ("v", "q"))
    tails_, ends_, D_, mask_ = (name if name in inputs else "f" for name in ("tails", "ends", "D", "mask"))
    space = ((heads, parts, plan.m, 2), mx.float32)
    rows = {name: _written(u, head_dim) for name, x in (("du", u), ("dv", v), ("dq", q)) if x is not None}
    found = _launch_rows(
        "backward", plan, options, heads * parts, inputs, {**rows, "partial": space, "kept": space},
        f"g, u, {v_}, {q_}, f, {tails_}, {ends_}, {D_}, {mask_}, table, du, {'du' if v is None else 'dv'}, {'du' if q is None else 'dq'}, "
        f"partial, kept, uint(u_shape[0]), uint(u_shape[1]) / head_dim, head_dim, int(u_shape[2]), parts, "
        f"{_strides('g')}, {_strides('u')}, {_strides(v_)}, {_strides(q_)}")
    found = dict(zip((*rows, "partial"), found))
    filters = {"dk": ((heads, taps), mx.float32)}
    if taps_reverse:
        filters["dk_reverse"] = ((heads, taps_reverse), mx.float32)
    dk = [None, None]
    if taps:
        numbers = {"heads": heads, "taps": taps, "taps_reverse": taps_reverse, "parts": parts}
        dk[:len(filters)] = _launch_rows(
            "filter_grad", plan, of_filter, heads,
            {"partial": found["partial"], **_there(tap_ends=tap_ends), "table": table, **numbers}, filters,
            f"partial, {'partial' if tap_ends is None else 'tap_ends'}, table, dk, {'dk_reverse' if taps_reverse else 'dk'}, heads, "
            "int(taps), int(taps_reverse), parts")
    return *(_cast(found.get(name), u) for name in ("du", "dv", "dq")), *dk


#: options that a stage of the columns looks at
_LOOKED_AT = {"SIGNAL": plans.GATE_BEFORE, "GRADIENT": plans.MASK, "FILTER": plans.REVERSE, "BACK": plans.GATE_BEFORE | plans.TAIL,
              "OUTPUT": plans.GATE_AFTER | plans.MASK | plans.GELU | plans.TAIL,
              "TURN": plans.GATE_AFTER | plans.MASK | plans.GELU | plans.TAIL, "FILTER_GRADIENT": plans.REVERSE | plans.TAIL}


class _Long:
    """The kernels of a LongPlan. A workspace is written once and then read, 8 bytes a point of each row."""

    def __init__(self, plan: LongPlan, options: int = 0, head_dim: int = 1):
        self.plan, self.options, self.inner, self.head_dim, self.pairs = plan, options, plan.inner, head_dim, head_dim ** 2
        self.table = _table(plan.inner.passes, plan.outer)
        if plan.tiles:
            self.column_table, self.shared, self.groups = _table(plan.tiles), 256 << plan.tile_points, plan.inner.m // 32
        else:
            self.column_table, self.shared, self.groups = _column_table(plan.outer, plan.inner.log_m), 0, max(1, plan.inner.m // 256)

    def column(self, options: int) -> str:
        plan, inner = self.plan, self.inner.log_m
        if plan.tiles:
            return f"fftconv::Plan<{plan.log_m}, {plan.tile_points}, 1, true, {options}, 0, {inner}>"
        return f"fftconv::Columns<{plan.outer}, {inner}, {options}>"

    def space(self, rows: int) -> tuple:
        return (rows, self.plan.m, 2), mx.float32

    def columns(self, stage, batch, heads, length, outputs: dict, taps_reverse=0, options=None, **given) -> list[mx.array]:
        """`given`: g, u, v, q, tails, mask, and the workspace that is read as `work`. What is not there is the table, which nobody reads."""
        arrays = _there(**given)
        inputs = {**arrays, "table": self.column_table, "batch": batch, "heads": heads, "head_dim": self.head_dim, "length": length,
                  "taps_reverse": taps_reverse}
        options = (self.options if options is None else options) & (_LOOKED_AT[stage] | plans.FOLD | plans.RAGGED | plans.PAIRS)
        names = [n if n in arrays else "table" for n in ("g", "u", "v", "q", "tails", "mask")]
        strides = [_strides(n) if n in arrays and arrays[n].ndim == 3 else "fftconv::Strides{0, 0, 0}" for n in "guvq"]
        to, *rest = outputs
        own = [n for n in outputs if n != "to"] or [to]
        return _launch(
            "columns", f"{self.column(options)}, fftconv::{stage}", self.shared, batch * heads * self.groups, 256, inputs, outputs,
            f"{', '.join(names)}, table, {'work' if 'work' in arrays else 'table'}, {to}, {own[0]}, {own[-1]}, batch, heads, head_dim, "
            f"int(length), int(taps_reverse), {', '.join(strides)}{'' if self.shared else ', nullptr'}")

    def rows(self, stage, units, batch, work, rows, f=None, D=None, kept=None, sums=None) -> list[mx.array]:
        """`rows` rows by so many units; with `sums` heads their sums, too."""
        arrays = _there(f=f, D=D, kept=kept)
        inputs = {"work": work, **arrays, "table": self.table, "batch": batch}
        outputs = {"to": self.space(rows), **({} if sums is None else {"sums": self.space(sums)})}
        template = f"{_own(self.inner, 0 if D is None else plans.SKIP, self.plan.outer)}, fftconv::{stage}"
        f_, D_, kept_ = (n if n in arrays else "table" for n in ("f", "D", "kept"))
        return _launch("rows", template, self.inner.row_floats, units << self.plan.outer, self.inner.threads, inputs, outputs,
                       f"{f_}, {D_}, table, work, {kept_}, to, {'to' if sums is None else 'sums'}, batch")

    def spectrum(self, k, k_reverse):
        heads, taps = k.shape
        options, reverse = (0, 0) if k_reverse is None else (plans.REVERSE, k_reverse.shape[1])
        work, = self.columns("FILTER", 1, heads, taps, {"to": self.space(heads)}, reverse, options | plans.FOLD | plans.RAGGED,
                             u=k[None], v=k_reverse)
        return self.rows("SPECTRUM", heads, 1, work, heads)[0]

    def forward(self, u, f, D, v, q, mask, tails):
        (batch, _, length), heads = u.shape, u.shape[1] // self.head_dim
        place, each = (batch, heads, length), batch * self.pairs
        rows = each * heads
        work, = self.columns("SIGNAL", *place, {"to": self.space(rows)}, u=u, v=v)
        work, = self.rows("CONVOLVE", rows, each, work, rows, f, D)
        return self.columns("OUTPUT", *place, {"y": _written(u, self.head_dim)}, q=q, tails=tails, mask=mask, work=work)[0]

    def backward(self, g, u, f, taps, taps_reverse, D, v, q, mask, edges, of_filter):
        (batch, _, length), heads, (tails, ends, tap_ends) = u.shape, u.shape[1] // self.head_dim, edges
        place, each, like, dq = (batch, heads, length), batch * self.pairs, _written(u, self.head_dim), None
        rows = each * heads
        work, = self.columns("SIGNAL", *place, {"to": self.space(rows)}, u=u, v=v)
        kept, = self.rows("TRANSFORM", rows, each, work, rows)
        if self.options & (plans.GATE_AFTER | plans.GELU):
            work, = self.rows("CONVOLUTION", rows, each, kept, rows, f, D)
            outputs = {"to": self.space(rows), **({} if q is None else {"dq": like})}
            work, *dq = self.columns("TURN", *place, outputs, g=g, q=q, tails=tails, mask=mask, work=work)
            dq = dq[0] if dq else None
        else:
            work, = self.columns("GRADIENT", *place, {"to": self.space(rows)}, g=g, mask=mask)
        work, sums = self.rows("ADJOINT", heads, each, work, rows, f, D, kept, heads)
        outputs = {"du": like, **({} if v is None else {"dv": like})}
        du, *dv = self.columns("BACK", *place, outputs, work=work, tails=ends, **({} if v is None else {"u": u, "v": v}))
        dk = [None, None]
        if taps:
            sums, = self.rows("INVERSE", heads, 1, sums, heads)
            filters = {"dk": ((heads, taps), mx.float32)}
            if taps_reverse:
                filters["dk_reverse"] = ((heads, taps_reverse), mx.float32)
            dk[:len(filters)] = self.columns("FILTER_GRADIENT", 1, heads, taps, filters, taps_reverse, of_filter, tails=tap_ends, work=sums)
        return du, dv[0] if dv else None, dq, *dk


def fftconv(u, k, D=None, v=None, q=None, k_reverse=None, dropout_mask=None, *, gelu=False, head_dim=1) -> mx.array:
    """The long convolution as `ember_ml.ops.fftconv` defines it, for what `ember_ml.kernels.fftconv` serves.

    Args: as the op's; u, v and q may be slices of one array. Taps beyond the length have no effect. A prepared filter keeps
        its spectrum.

    Returns: (B, D, L) in u's dtype, computed in float32.
    """
    if plans.is_direct(u, k, k_reverse, dropout_mask, gelu, head_dim):
        return shortconv.forward(_gpu(), u, *_taps(u, k, k_reverse), v=v, q=q, skip=D)
    plan, tail = _plan(u, k, k_reverse, head_dim)

    def some(u, D, v, q, mask, tail, **filters):
        return forward(plan, u, _spectrum_of(plan, **filters), D, v, q, mask, gelu, tail, head_dim),

    return in_turns(some, _together(plan, u, head_dim, 3), (1,), {"u": u, "v": v, "q": q},
                    {"D": D, "tail": tail, **_filters(plan, u, k, k_reverse)}, {"mask": dropout_mask})[0]


def fftconv_grad(g, u, k, D=None, v=None, q=None, k_reverse=None, dropout_mask=None, *, gelu=False, head_dim=1) -> tuple:
    """Gradients of `fftconv` for that of its output, in u, k, D, v, q and k_reverse; None for those that are not there.

    Those in k, D and k_reverse are float32, the others have u's dtype.
    """
    prepared = not isinstance(k, mx.array)                 # no gradient flows into it
    if plans.is_direct(u, k, k_reverse, dropout_mask, gelu, head_dim):
        du, dv, dq, dk, dk_reverse, dD, _ = shortconv.backward(_gpu(), g, u, *_taps(u, k, k_reverse), v=v, q=q, skip=D)
        return du, None if prepared else _widened(dk, k), dD, dv, dq, None if prepared else _widened(dk_reverse, k_reverse)
    plan, tail = _plan(u, k, k_reverse, head_dim)
    taps, taps_reverse = (0 if f is None or prepared else min(f.shape[1], u.shape[2]) for f in (k, k_reverse))
    if prepared and D is not None:
        taps = 1                                           # the skip is one more tap at lag 0

    def some(g, u, D, v, q, mask, tail, **filters):
        return backward(plan, g, u, _spectrum_of(plan, **filters), taps, taps_reverse, D, v, q, mask, gelu, tail, head_dim)

    du, dv, dq, dk, dk_reverse = in_turns(
        some, _together(plan, u, head_dim, 4), (1, 1, 1, 0, 0), {"g": g.astype(u.dtype), "u": u, "v": v, "q": q},
        {"D": D, "tail": tail, **_filters(plan, u, k, k_reverse)}, {"mask": dropout_mask})
    dD = None if D is None else dk[:, 0]
    return du, None if prepared else _widened(dk, k), dD, dv, dq, _widened(dk_reverse, k_reverse)


def _taps(u, k, k_reverse) -> tuple:
    """The taps of both filters that u meets, in float32."""
    own = (k, k_reverse) if isinstance(k, mx.array) else (None if f is None else f.data for f in (k.k, k.k_reverse))
    return tuple(None if f is None else f[:, :u.shape[2]].astype(mx.float32) for f in own)


def _plan(u, k, k_reverse, head_dim) -> tuple[Plan | LongPlan, mx.array | None]:
    """The plan, and the filter if its last taps have to be mended."""
    size, tailed = plans.size_of(u, k, k_reverse, head_dim)
    return plans.metal_plan(size), (k if isinstance(k, mx.array) else k.k.data)[:, :u.shape[2]] if tailed else None


def _together(plan, u, head_dim, spaces) -> int:
    """Heads that are worked on at a time. In three passes each writes a workspace of its own, of which so many are there at once."""
    return plan.together(u.shape[0] * head_dim ** 2, spaces) if isinstance(plan, LongPlan) else u.shape[1]


def _filters(plan, u, k, k_reverse) -> dict:
    """The taps that u meets, or the transform of a prepared filter, which makes it once for each plan and length."""
    length = u.shape[2]
    if isinstance(k, mx.array):
        return {"k": k[:, :length], "k_reverse": None if k_reverse is None else k_reverse[:, :length]}
    own, reverse = k.k.data, None if k.k_reverse is None else k.k_reverse.data
    return {"f": k.spectrum(("metal", plan.log_m, length), lambda: (spectrum(plan, **_filters(plan, u, own, reverse)),))[0]}


def _spectrum_of(plan, f=None, k=None, k_reverse=None):
    return spectrum(plan, k, k_reverse) if f is None else f


def _widened(dk, k):
    """Zeros for the taps that met nothing."""
    return dk if k is None or dk.shape == k.shape else mx.pad(dk, ((0, 0), (0, k.shape[1] - dk.shape[1])))


def _gpu():
    from ember_mlx.kernels import Metal
    return Metal()
