"""Launches the short depthwise convolution of metal/shortconv.metal: forward and gradients."""

from __future__ import annotations

from functools import cache, lru_cache

import mlx.core as mx

from ember_ml.kernels import shortconv as plans
from ember_ml.kernels import source_text


@cache
def _kernel(name: str, shared: int, inputs: tuple[str, ...], outputs: tuple[str, ...], arguments: str, own: str):
    """One kernel. MLX compiles by the name, so that it says all that the text depends on: `own` are the initials of its arrays."""
    memory = f"threadgroup float shared[{shared}]; " if shared else ""
    source = f"{memory}shortconv::{name}({arguments});"
    return mx.fast.metal_kernel(name=f"shortconv_{name}_{shared}_{own}", input_names=inputs, output_names=outputs, source=source,
                                header=source_text("metal", "shortconv"), ensure_row_contiguous=False)


def _launch(name, shared, groups, threads, inputs: dict, outputs: dict, arguments: str) -> list[mx.array]:
    """Arrays of the (shape, dtype) in `outputs`; `arguments` is how the function is called, with the inputs' names."""
    given = {n: _number(x) if isinstance(x, int) else x for n, x in inputs.items() if x is not None}
    own = "".join(n.removeprefix("d_")[0] for n, x in {**given, **outputs}.items() if isinstance(x, tuple) or x.ndim)
    shapes, dtypes = zip(*outputs.values())
    return _kernel(name, shared, tuple(given), tuple(outputs), arguments, own)(
        inputs=list(given.values()), grid=(groups * threads, 1, 1), threadgroup=(threads, 1, 1), output_shapes=list(shapes),
        output_dtypes=list(dtypes))


@lru_cache(maxsize=256)
def _number(value: int) -> mx.array:
    return mx.array(value, mx.uint32)


def _filters(taps, ahead, skip, bias) -> dict:
    """The arrays that describe the window, contiguous."""
    given = {"taps": taps, "ahead": ahead, "skip": None if skip is None else skip.astype(mx.float32), "bias": bias}
    return {n: x if x is None else mx.contiguous(x) for n, x in given.items()}


def _options(given: dict, silu, flipped, channels_last) -> int:
    bits = {"v": plans.GATE_BEFORE, "q": plans.GATE_AFTER, "skip": plans.SKIP, "bias": plans.BIAS}
    return (sum(bit for n, bit in bits.items() if given[n] is not None) + plans.SILU * silu + plans.FLIPPED * flipped
            + plans.CHANNELS_LAST * channels_last)


def _size(filters: dict) -> dict:
    return {name: 0 if f is None else f.shape[1] for name, f in (("past", filters["taps"]), ("future", filters["ahead"]))}


def _shared(size: int, backward: bool) -> int:
    """Floats of a tile for windows of at least this size, of few sizes, each of which is a kernel of its own."""
    return plans.shared_floats(next(s for s in (8, 32, plans.LONGEST) if s >= size), backward)


def _names(given: dict, *names: str) -> dict:
    """What a kernel's parameters are called with: their own names, or others where they are not there, which nobody reads."""
    stands_in = {"v": "u", "q": "u"}
    filter_ = "ahead" if given["taps"] is None else "taps"
    return {n: n if given[n] is not None else stands_in.get(n, filter_) for n in names}


def _strides(name: str) -> str:
    return f"shortconv::Strides{{{', '.join(f'size_t({name}_strides[{axis}])' for axis in range(3))}}}"


_PLACE = "threadgroup_position_in_grid.x, int(thread_position_in_threadgroup.x)"


def forward(u, taps, ahead=None, *, v=None, q=None, skip=None, bias=None, silu=False, flipped=False, channels_last=False) -> mx.array:
    """y = q act(bias + sum_lag w[lag] (u v)[t - lag]), act the silu or nothing; arguments as those of CuPy's launcher."""
    batch, channels, length = u.shape
    filters = _filters(taps, ahead, skip, bias)
    given = {"u": u, "v": v, "q": q, **filters}
    size, names = _size(filters), _names(given, "u", "v", "q", "taps", "ahead", "skip", "bias")
    numbers = {**size, "options": _options(given, silu, flipped, channels_last)}
    made = (batch, length, channels) if channels_last else u.shape
    y, = _launch("forward", _shared(plans.window(*size.values()), False), plans.blocks(batch, channels, length), plans.THREADS,
                 {**given, **numbers}, {"y": (made, u.dtype)},
                 f"{', '.join(names.values())}, y, uint(u_shape[1]), int(u_shape[2]), int(past), int(future), options, "
                 f"{', '.join(_strides(names[n]) for n in 'uvq')}, shared, {_PLACE}")
    return y


def backward(g, u, taps, ahead=None, *, v=None, q=None, skip=None, bias=None, silu=False, flipped=False, channels_last=False) -> tuple:
    """Gradients of `forward` in u, v, q, of u's dtype, and in taps, ahead, skip and bias, float32; None for what is not there."""
    batch, channels, length = u.shape
    filters = _filters(taps, ahead, skip, bias)
    given = {"g": g.astype(u.dtype), "u": u, "v": v, "q": q, **filters}
    size, names = _size(filters), _names(given, "u", "v", "q", "taps", "ahead", "skip", "bias")
    wide, parts = plans.window(*size.values()), plans.parts(batch, channels, length)
    numbers = {**size, "parts": parts, "options": _options(given, silu, flipped, channels_last)}
    made = (batch, length, channels) if channels_last else u.shape
    rows = {f"d{n}": (made, u.dtype) for n in "uvq" if given[n] is not None}
    dv, dq = (n if n in rows else "du" for n in ("dv", "dq"))
    found = _launch("backward", _shared(wide, True), parts * -(-channels // plans.LANES), plans.THREADS, {**given, **numbers},
                    {**rows, "partial": ((parts, channels, wide + 1), mx.float32)},
                    f"g, {', '.join(names.values())}, du, {dv}, {dq}, partial, uint(u_shape[0]), uint(u_shape[1]), int(u_shape[2]), "
                    f"int(past), int(future), parts, options, {', '.join(_strides(n) for n in ['g', *(names[n] for n in 'uvq')])}, shared, "
                    f"{_PLACE}")
    found = dict(zip((*rows, "partial"), found))
    sums = {f"d_{n}": (x.shape, mx.float32) for n, x in filters.items() if x is not None}
    out = [f"d_{n}" if f"d_{n}" in sums else next(iter(sums)) for n in filters]
    threads = -(-channels * (wide + 1) // 256)
    sums = dict(zip(sums, _launch("backward_taps", 0, threads, 256, {"partial": found["partial"], "channels": channels, **numbers}, sums,
                                  f"partial, {', '.join(out)}, channels, int(past), int(future), parts, options, "
                                  "thread_position_in_grid.x")))
    return (*(found.get(f"d{n}") for n in "uvq"), *(sums.get(f"d_{n}") for n in filters))


def short_conv(x, weight, bias=None, *, anticausal=False, silu=False, channels_last=False) -> mx.array:
    """y of `ember_ml.ops.conv.depthwise_rows`, summed in float32."""
    taps = (None, weight) if anticausal else (weight, None)
    return forward(x, *taps, bias=bias, silu=silu, flipped=True, channels_last=channels_last)


def short_conv_grad(g, x, weight, bias=None, *, anticausal=False, silu=False) -> tuple:
    """Gradients of `short_conv` in x, (B, L, D), weight and bias; the last two are float32."""
    taps = (None, weight) if anticausal else (weight, None)
    dx, _, _, d_taps, d_ahead, _, d_bias = backward(g, x, *taps, bias=bias, silu=silu, flipped=True, channels_last=True)
    return dx, d_ahead if anticausal else d_taps, d_bias
