"""Launches the short depthwise convolution of metal/shortconv.metal: forward and gradients."""

from __future__ import annotations

from functools import cache, lru_cache

import mlx.core as mx

from ember_ml.kernels import shortconv as plans
from ember_ml.kernels import source_text


@cache
def _kernel(name: str, shared: int, inputs: tuple[str, ...], outputs: tuple[str, ...], arguments: str):
    """One kernel. MLX compiles by the name, so that it says all that the text depends on, which is short: files are named by it."""
    memory = f"threadgroup float shared[{shared}]; " if shared else ""
    own = "".join(output.removeprefix("d_").removeprefix("d")[0] for output in outputs)
    return mx.fast.metal_kernel(name=f"shortconv_{name}_{shared}_{own}", input_names=inputs, output_names=outputs,
                                source=f"{memory}shortconv::{name}({arguments});", header=source_text("metal", "shortconv"),
                                ensure_row_contiguous=False)


def _launch(name, shared, groups, threads, inputs: dict, outputs: dict, arguments: str) -> dict[str, mx.array]:
    """Arrays of the (shape, dtype) in `outputs`, by their names; `arguments` is how the function is called, with the inputs' names."""
    given = {n: _number(x) if isinstance(x, int) else x for n, x in inputs.items()}
    shapes, dtypes = zip(*outputs.values())
    made = _kernel(name, shared, tuple(given), tuple(outputs), arguments)(
        inputs=list(given.values()), grid=(groups * threads, 1, 1), threadgroup=(threads, 1, 1), output_shapes=list(shapes),
        output_dtypes=list(dtypes))
    return dict(zip(outputs, made))


@lru_cache(maxsize=256)
def _number(value: int) -> mx.array:
    return mx.array(value, mx.uint32)


class _Call:
    """What both directions ask of a call: the arrays and numbers of a kernel, and how it is called with them.

    Arrays that are not there are others, which nobody reads: so there are few kernels.
    """

    def __init__(self, u, taps, ahead, v, q, skip, bias, silu, flipped, channels_last):
        there = {"v": v, "q": q, "skip": skip, "bias": bias}
        options = plans.options(v, q, skip, bias, silu, flipped, channels_last)
        self.filters = {n: mx.contiguous(x) for n, x in (("taps", taps), ("ahead", ahead), ("skip", skip), ("bias", bias)) if x is not None}
        some = self.filters["ahead" if taps is None else "taps"]
        sizes = [0 if f is None else f.shape[1] for f in (taps, ahead)]
        self.window = plans.window(*sizes)
        self.arrays = {"u": u, **{n: u if there[n] is None else there[n] for n in "vq"},
                       **{n: self.filters.get(n, some) for n in ("taps", "ahead", "skip", "bias")}}
        self.numbers = {"past": sizes[0], "future": sizes[1], "options": options}
        self.made = (u.shape[0], u.shape[2], u.shape[1]) if channels_last else u.shape

    def shared(self, backward: bool) -> int:
        """Floats of a tile for windows of at least this size, of few sizes, each of which is a kernel of its own."""
        return plans.shared_floats(next(s for s in (8, 32, plans.LONGEST) if s >= self.window), backward)


def _strides(names: str) -> str:
    return ", ".join(f"shortconv::Strides{{{', '.join(f'size_t({n}_strides[{axis}])' for axis in range(3))}}}" for n in names)


_ARRAYS = "u, v, q, taps, ahead, skip, bias"
_PLACE = "shared, threadgroup_position_in_grid.x, int(thread_position_in_threadgroup.x)"


def forward(u, taps, ahead=None, *, v=None, q=None, skip=None, bias=None, silu=False, flipped=False,
            channels_last=False) -> mx.array:
    """y = q act(bias + sum_lag w[lag] (u v)[t - lag]), act the silu or nothing; arguments as those of CuPy's launcher."""
    batch, channels, length = u.shape
    call = _Call(u, taps, ahead, v, q, skip, bias, silu, flipped, channels_last)
    return _launch("forward", call.shared(False), plans.blocks(batch, channels, length), plans.THREADS, {**call.arrays, **call.numbers},
                   {"y": (call.made, u.dtype)},
                   f"{_ARRAYS}, y, uint(u_shape[1]), int(u_shape[2]), int(past), int(future), options, {_strides('uvq')}, {_PLACE}")["y"]


def backward(g, u, taps, ahead=None, *, v=None, q=None, skip=None, bias=None, silu=False, flipped=False,
             channels_last=False) -> tuple:
    """Gradients of `forward` in u, v, q, of u's dtype, and in taps, ahead, skip and bias, float32; None for what is not there."""
    batch, channels, length = u.shape
    call = _Call(u, taps, ahead, v, q, skip, bias, silu, flipped, channels_last)
    parts = plans.parts(batch, channels, length)
    rows = {name: (call.made, u.dtype) for name, x in (("du", u), ("dv", v), ("dq", q)) if x is not None}
    dv, dq = (n if n in rows else "du" for n in ("dv", "dq"))
    found = _launch(
        "backward", call.shared(True), parts * -(-channels // plans.LANES), plans.THREADS,
        {"g": g.astype(u.dtype), **call.arrays, **call.numbers, "parts": parts},
        {**rows, "partial": ((parts, channels, call.window + 1), mx.float32)},
        f"g, {_ARRAYS}, du, {dv}, {dq}, partial, uint(u_shape[0]), uint(u_shape[1]), int(u_shape[2]), int(past), int(future), parts, "
        f"options, {_strides('guvq')}, {_PLACE}")
    sums = {f"d_{n}": (x.shape, mx.float32) for n, x in call.filters.items()}
    out = [n if n in sums else next(iter(sums)) for n in ("d_taps", "d_ahead", "d_skip", "d_bias")]
    found |= _launch("backward_taps", 0, -(-channels * (call.window + 1) // 256), 256,
                     {"partial": found["partial"], "channels": channels, **call.numbers, "parts": parts}, sums,
                     f"partial, {', '.join(out)}, channels, int(past), int(future), parts, options, thread_position_in_grid.x")
    return tuple(found.get(n) for n in ("du", "dv", "dq", "d_taps", "d_ahead", "d_skip", "d_bias"))


short_conv, short_conv_grad = plans.depthwise(forward, backward)
