"""Launches the short depthwise convolution of cuda/shortconv.cu: forward and gradients."""

from __future__ import annotations

from functools import cache
from typing import Any

import cupy
import numpy as np

from ember_ml.backend.cupy.arrays import C_TYPES, library_of
from ember_ml.kernels import shortconv as plans
from ember_ml.kernels import source_text

#: a cupy.ndarray, or what `arrays.use` has made known
Array = Any


@cache
def _kernel(name: str, own: str, taps: str):
    """One kernel for arrays and taps of these dtypes."""
    expression = name if name == "shortconv_backward_taps" else f"{name}<{C_TYPES[own]}, {C_TYPES[taps]}>"
    module = cupy.RawModule(code=source_text("cuda", "shortconv"), options=("-std=c++17",), name_expressions=[expression])
    return module.get_function(expression)


def _launch(name: str, blocks: int, threads: int, arguments, own: str = "", taps: str = "", dynamic: int = 0):
    _kernel(name, own, taps)((blocks,), (threads,), tuple(
        np.uint64(0) if a is None else np.uint32(a) if type(a) is int else a if isinstance(a, np.generic) else library_of(a).argument(a)
        for a in arguments), shared_mem=dynamic)


def _strided(x: Array | None) -> tuple:
    """(array, its strides) for a kernel, which takes any but negative ones."""
    if x is None:
        return None, (np.uint64(0),) * 3
    strides = library_of(x).strides(x)
    if strides is None:
        x = library_of(x).aligned(x)
        strides = library_of(x).strides(x)
    return x, tuple(map(np.uint64, strides))


def _filters(taps, ahead, skip, bias) -> tuple[str, list]:
    """(dtype of the taps, the arrays that describe the window), contiguous, all but the skip in that dtype."""
    library = library_of(taps if taps is not None else ahead)
    kind = library.name(taps if taps is not None else ahead)
    return kind, [None if x is None else library.aligned(library.cast(x, wanted))
                  for x, wanted in ((taps, kind), (ahead, kind), (skip, "float32"), (bias, kind))]


def _empty(x: Array, channels_last: bool) -> Array:
    """An array like x (B, D, L), of that shape or (B, L, D)."""
    batch, channels, length = x.shape
    return library_of(x).empty((batch, length, channels) if channels_last else (batch, channels, length), library_of(x).name(x), x)


def _size(filters) -> tuple[int, int]:
    return tuple(0 if f is None else f.shape[1] for f in filters)


def forward(u, taps, ahead=None, *, v=None, q=None, skip=None, bias=None, silu=False, flipped=False, channels_last=False) -> Array:
    """y = q act(bias + sum_lag w[lag] (u v)[t - lag]), act the silu or nothing.

    Args:
        u, v, q: (B, D, L), v and q or None; any strides. taps, ahead: (D, K) of lags 0, 1, ..., and of 0, -1, ..., one of them or both,
            windows of at most LONGEST together; flipped: the other way round, lag 0 last. skip: (D,), one more tap at lag 0.
        channels_last: y is (B, L, D), else (B, D, L).
    """
    batch, channels, length = u.shape
    options = plans.options(v, q, skip, bias, silu, flipped, channels_last)
    kind, filters = _filters(taps, ahead, skip, bias)
    size, y = _size(filters[:2]), _empty(u, channels_last)
    (u_, us), (v_, vs), (q_, qs) = map(_strided, (u, v, q))
    _launch("shortconv_forward", plans.blocks(batch, channels, length), plans.THREADS,
            (u_, v_, q_, *filters, y, channels, np.int32(length), *map(np.int32, size), options, *us, *vs, *qs),
            library_of(u).name(u), kind, 4 * plans.shared_floats(plans.window(*size), False))
    return y


def backward(g, u, taps, ahead=None, *, v=None, q=None, skip=None, bias=None, silu=False, flipped=False, channels_last=False) -> tuple:
    """Gradients of `forward` in u, v, q, of u's dtype, and in taps, ahead, skip and bias, float32; None for what is not there.

    channels_last: those in u, v and q are (B, L, D), else (B, D, L); g is (B, D, L).
    """
    batch, channels, length = u.shape
    library, options = library_of(u), plans.options(v, q, skip, bias, silu, flipped, channels_last)
    kind, filters = _filters(taps, ahead, skip, bias)
    size = _size(filters[:2])
    wide, count = plans.window(*size), plans.parts(batch, channels, length)
    made = [None if x is None else _empty(u, channels_last) for x in (u, v, q)]
    partial = library.empty((count, channels, wide + 1), "float32", u)
    (g_, gs), (u_, us), (v_, vs), (q_, qs) = map(_strided, (library.cast(g, library.name(u)), u, v, q))
    _launch("shortconv_backward", count * -(-channels // plans.LANES), plans.THREADS,
            (g_, u_, v_, q_, *filters, *made, partial, batch, channels, np.int32(length), *map(np.int32, size), count,
             options, *gs, *us, *vs, *qs), library.name(u), kind, 4 * plans.shared_floats(wide, True))
    sums = [None if x is None else library.empty(tuple(x.shape), "float32", u) for x in filters]
    _launch("shortconv_backward_taps", -(-channels * (wide + 1) // 256), 256,
            (partial, *sums, channels, *map(np.int32, size), count, options))
    return *made, *sums


short_conv, short_conv_grad = plans.depthwise(forward, backward)
