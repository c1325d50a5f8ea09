"""Launches the long convolution of metal/fftconv.metal: forward, gradients, and the filters' spectra."""

from __future__ import annotations

from functools import cache

import mlx.core as mx

from ember_ml.kernels import fftconv as plans
from ember_ml.kernels import source_text
from ember_ml.kernels.fftconv import Plan


@cache
def _kernel(name: str, plan: Plan, options: int, inputs: tuple[str, ...], outputs: tuple[str, ...], arguments: str):
    """One kernel. MLX compiles by the name, so that it says all that the text depends on."""
    own = f"{plan.log_m}, {plan.log_points}, {plan.rows}, {str(plan.split).lower()}, {options}"
    source = (f"threadgroup float2 shared[{plan.rows * plan.row_floats // 2}]; fftconv::{name}<fftconv::Plan<{own}>>({arguments}, "
              "(threadgroup float*)shared, threadgroup_position_in_grid.x, thread_position_in_threadgroup.x);")
    return mx.fast.metal_kernel(
        name=f"fftconv_{name}_{own.replace(', ', '_')}", input_names=inputs, output_names=outputs, source=source,
        header=source_text("metal", "fftconv"), ensure_row_contiguous=False)


def _launch(name, plan, options, units, inputs: dict, outputs: dict, arguments: str) -> list[mx.array]:
    """Arrays of the (shape, dtype) in `outputs`; `arguments` is how the function is called, with the inputs' names."""
    kernel = _kernel(name, plan, options, tuple(inputs), tuple(outputs), arguments)
    shapes, dtypes = zip(*outputs.values())
    return kernel(inputs=list(inputs.values()), grid=(-(-units // plan.rows) * plan.threads, 1, 1),
                  threadgroup=(plan.threads, 1, 1), output_shapes=list(shapes), output_dtypes=list(dtypes))


@cache
def _table(passes: tuple[int, ...]) -> mx.array:
    return mx.array(plans.factors(passes), mx.float32)


def _floats(x: mx.array | None) -> mx.array | None:
    return None if x is None else mx.contiguous(x.astype(mx.float32))


def _there(**arrays) -> dict:
    return {name: x for name, x in arrays.items() if x is not None}


def _strides(name: str) -> str:
    return f"fftconv::Strides{{{', '.join(f'size_t({name}_strides[{axis}])' for axis in range(3))}}}"


def spectrum(plan: Plan, k: mx.array, k_reverse: mx.array | None) -> mx.array:
    """The filters' transform (H, M, 2) in the order in which the plan's kernels read it."""
    inputs = _there(k=_floats(k), k_reverse=_floats(k_reverse), table=_table(plan.passes))
    reverse = "k" if k_reverse is None else "k_reverse"
    options = plans.FOLD | plans.RAGGED | (0 if k_reverse is None else plans.REVERSE)
    out, = _launch("spectrum", plan, options, k.shape[0], inputs, {"out": ((k.shape[0], plan.m, 2), mx.float32)},
                   f"k, {reverse}, table, out, uint(k_shape[0]), int(k_shape[1]), int({reverse}_shape[1])")
    return out


def forward(plan: Plan, u, f, D=None, v=None, q=None, mask=None, gelu=False) -> mx.array:
    """y of `fftconv` for a spectrum f of `spectrum`."""
    options = plans.options(plan, u.shape[2], v=v is not None, q=q is not None, D=D is not None, mask=mask is not None, gelu=gelu)
    inputs = _there(u=u, v=v, q=q, f=f, D=_floats(D), mask=_floats(mask), table=_table(plan.passes))
    v_, q_, D_, mask_ = (name if name in inputs else other for name, other in (("v", "u"), ("q", "u"), ("D", "f"), ("mask", "f")))
    y, = _launch("forward", plan, options, u.shape[0] * u.shape[1], inputs, {"y": (u.shape, u.dtype)},
                 f"u, {v_}, {q_}, f, {D_}, {mask_}, table, y, uint(u_shape[0]), uint(u_shape[1]), int(u_shape[2]), "
                 f"{_strides('u')}, {_strides(v_)}, {_strides(q_)}")
    return y


def backward(plan: Plan, g, u, f, taps, taps_reverse=0, D=None, v=None, q=None, mask=None, gelu=False):
    """(du, dv, dq, dk, dk_reverse) of `fftconv`; dv, dq and dk_reverse are None where there is none; dk is float32."""
    batch, heads, length = u.shape
    options = plans.options(plan, length, v=v is not None, q=q is not None, D=D is not None, mask=mask is not None, gelu=gelu)
    parts, table = plan.parts(batch, heads), _table(plan.passes)
    inputs = _there(g=g, u=u, v=v, q=q, f=f, D=_floats(D), mask=_floats(mask), table=table)
    v_, q_, D_, mask_ = (name if name in inputs else other for name, other in (("v", "u"), ("q", "u"), ("D", "f"), ("mask", "f")))
    space = ((heads, parts, plan.m, 2), mx.float32)
    rows = {name: (u.shape, u.dtype) for name, x in (("du", u), ("dv", v), ("dq", q)) if x is not None}
    found = _launch("backward", plan, options, heads * parts, inputs, {**rows, "partial": space, "kept": space},
                    f"g, u, {v_}, {q_}, f, {D_}, {mask_}, table, du, {'du' if v is None else 'dv'}, {'du' if q is None else 'dq'}, "
                    f"partial, kept, uint(u_shape[0]), uint(u_shape[1]), int(u_shape[2]), {parts}u, {_strides('g')}, "
                    f"{_strides('u')}, {_strides(v_)}, {_strides(q_)}")
    found = dict(zip((*rows, "partial"), found))
    filters = {"dk": ((heads, taps), mx.float32)}
    if taps_reverse:
        filters["dk_reverse"] = ((heads, taps_reverse), mx.float32)
    dk = [None, None]
    if taps:
        dk[:len(filters)] = _launch(
            "filter_grad", plan, plans.FOLD | plans.RAGGED | (plans.REVERSE if taps_reverse else 0), heads,
            {"partial": found["partial"], "table": table}, filters,
            f"partial, table, dk, {'dk_reverse' if taps_reverse else 'dk'}, {heads}u, {taps}, {taps_reverse}, {parts}u")
    return found["du"], found.get("dv"), found.get("dq"), *dk


def fftconv(u, k, D=None, v=None, q=None, k_reverse=None, dropout_mask=None, *, gelu=False, head_dim=1) -> mx.array:
    """The long convolution as `ember_ml.ops.fftconv` defines it, for what `ember_ml.kernels.fftconv` serves.

    Args: as the op's; u, v and q may be slices of one array. Taps beyond the length have no effect. A prepared filter keeps
        its spectrum.

    Returns: (B, D, L) in u's dtype, computed in float32.
    """
    plan = _plan(u, k, k_reverse)
    return forward(plan, u, _spectrum(plan, u, k, k_reverse), D, v, q, dropout_mask, gelu)


def fftconv_grad(g, u, k, D=None, v=None, q=None, k_reverse=None, dropout_mask=None, *, gelu=False, head_dim=1) -> tuple:
    """Gradients of `fftconv` for that of its output, in u, k, D, v, q and k_reverse; None for those that are not there.

    Those in k, D and k_reverse are float32, the others have u's dtype.
    """
    plan = _plan(u, k, k_reverse)
    prepared = not isinstance(k, mx.array)                 # no gradient flows into it
    taps, taps_reverse = (0 if f is None or prepared else min(f.shape[1], u.shape[2]) for f in (k, k_reverse))
    if prepared and D is not None:
        taps = 1                                           # the skip is one more tap at lag 0
    du, dv, dq, dk, dk_reverse = backward(plan, g.astype(u.dtype), u, _spectrum(plan, u, k, k_reverse), taps, taps_reverse,
                                          D, v, q, dropout_mask, gelu)
    dD = None if D is None else dk[:, 0]
    return du, None if prepared else _widened(dk, k), dD, dv, dq, _widened(dk_reverse, k_reverse)


def _plan(u, k, k_reverse) -> Plan:
    return plans.metal_plan(plans.log_m(u.shape[2], plans.met(u, k, k_reverse)))


def _spectrum(plan, u, k, k_reverse):
    """The transform of the taps that u meets; a prepared filter makes it once for each plan and length."""
    length = u.shape[2]
    if isinstance(k, mx.array):
        return spectrum(plan, k[:, :length], None if k_reverse is None else k_reverse[:, :length])
    own, reverse = k.k.data, None if k.k_reverse is None else k.k_reverse.data
    return k.spectrum(("metal", plan.log_m, length), lambda: (_spectrum(plan, u, own, reverse),))[0]


def _widened(dk, k):
    """Zeros for the taps that met nothing."""
    return dk if k is None or dk.shape == k.shape else mx.pad(dk, ((0, 0), (0, k.shape[1] - dk.shape[1])))
