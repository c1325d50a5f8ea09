"""Launches Ember's CUDA kernels through cupy.RawModule, on the current device and stream.

Functions take and return cupy.ndarrays, or arrays of a library that `arrays.use` has made known. NVRTC compiles a file once per dtype;
CuPy keeps the result on disk.
"""

from __future__ import annotations

from functools import cache
from math import prod
from typing import Any

import cupy
import numpy as np

from ember_ml.backend.cupy.arrays import C_TYPES, library_of
from ember_ml.backend.cupy.fftconv import fftconv, fftconv_grad
from ember_ml.backend.cupy.shortconv import short_conv, short_conv_grad
from ember_ml.kernels import LANES, SPECS, THREADS, moe, route, row_block, scan, source_text
from ember_ml.kernels.spec import Entry

#: a cupy.ndarray, or what `arrays.use` has made known
Array = Any

#: entries of each file; those that are made for a dtype are compiled together
_ENTRIES = {stem: [entry for spec in SPECS if spec.stem == stem for entry in spec.entries] for stem in {spec.stem for spec in SPECS}}


@cache
def _module(stem: str, typed: bool, dtype: str):
    names = [_expression(entry, dtype) for entry in _ENTRIES[stem] if entry.typed == typed]
    return cupy.RawModule(code=source_text("cuda", stem), options=("-std=c++17",), name_expressions=names)


def _expression(entry: Entry, dtype: str) -> str:
    return f"{entry.name}<{C_TYPES[dtype]}>" if entry.typed else entry.name


@cache
def _kernel(entry: Entry, dtype: str):
    return _module(entry.stem, entry.typed, dtype if entry.typed else "").get_function(_expression(entry, dtype))


@cache
def _own_dtype(entry: Entry, *dtypes: str) -> str:
    return entry.own_dtype(dtypes)


@cache
def _sizes(entry: Entry) -> list[tuple[int, int]]:
    """(number of the input, axis) of each size."""
    return [(entry.input_names.index(name), axis) for name, axis in entry.sizes]


def _launch(entry: Entry, inputs, blocks, block, outputs, numbers=()):
    """Fills `outputs`, by `blocks` (x, y) of threads, each of the size `block` (x, y), and returns them.

    Raises UnsupportedDtype if the kernel does not take the inputs' dtypes.
    """
    library = library_of(inputs[0])
    dtype = _own_dtype(entry, *map(library.name, inputs))
    inputs = [*map(library.aligned, inputs)]
    sizes = [np.uint32(inputs[i].shape[axis]) for i, axis in _sizes(entry)]
    sizes += [np.float32(n) if isinstance(n, float) else np.uint32(n) for n in numbers]
    _kernel(entry, dtype)(blocks, block, (*map(library.argument, (*inputs, *outputs)), *sizes))
    return outputs


def _row_blocks(width: int, rows: int, block: tuple[int, int]) -> tuple[tuple, tuple]:
    """(blocks, block) for `rows` rows of `width` threads; blockIdx.x counts along y, see cuda/moe.cu."""
    return (-(-rows // block[1]), -(-width // block[0])), block


def moe_combine(expert_out: Array, inverse: Array, weights: Array) -> Array:
    """y[t] = sum_k weights[t, k] expert_out[inverse[t, k]].

    Args:
        expert_out: (N, D), float32, float16 or bfloat16. inverse: (T, K), int32. weights: (T, K), float32.

    Returns: (T, D) in expert_out's dtype, summed in float32. Indices out of range are moved to the nearest row.

    Raises UnsupportedDtype for other dtypes.
    """
    library, shape = library_of(expert_out), (inverse.shape[0], expert_out.shape[1])
    dtype = library.name(expert_out)
    if 0 in expert_out.shape or 0 in inverse.shape:        # CUDA launches no empty grids
        return library.full(shape, 0, dtype, expert_out)
    packs = moe.packs(shape[1], library.itemsize(expert_out))
    y, = _launch(moe.FORWARD, [expert_out, inverse, weights], *_row_blocks(packs, shape[0], row_block(packs)),
                 [library.empty(shape, dtype, expert_out)])
    return y


def moe_combine_backward(g: Array, expert_out: Array, inverse: Array,
                         weights: Array) -> tuple[Array, Array]:
    """Gradients of `moe_combine` for its output's gradient g (T, D), which has expert_out's dtype.

    Returns: d_expert_out (N, D) in expert_out's dtype, zero in rows that no pair owns; d_weights (T, K), float32.
    An index out of range owns no row: its part of d_expert_out is dropped.

    Raises UnsupportedDtype for other dtypes.
    """
    library = library_of(expert_out)
    d_expert_out = library.full(expert_out.shape, 0, library.name(expert_out), expert_out)
    if 0 in expert_out.shape or 0 in inverse.shape:
        return d_expert_out, library.full(weights.shape, 0, "float32", weights)
    (_, width), pairs = expert_out.shape, prod(inverse.shape)
    _launch(moe.BACKWARD_ROWS, [g, expert_out, inverse, weights], *_row_blocks(width, pairs, row_block(width)), [d_expert_out])
    d_weights, = _launch(moe.BACKWARD_WEIGHTS, [g, expert_out, inverse], *_row_blocks(LANES, pairs, (LANES, THREADS // LANES)),
                         [library.empty(weights.shape, "float32", weights)])
    return d_expert_out, d_weights


def _scan_blocks(a: Array) -> tuple[tuple, tuple]:
    """(blocks, block): a block for every LANES channels of every sequence, a row of its threads for each segment."""
    batch, length, width = a.shape
    return (-(-width // LANES) * batch, 1), (LANES, scan.segments("cuda", length))


def linear_scan(a: Array, b: Array, initial: Array) -> tuple[Array, Array]:
    """All states of h_t = a_t h_{t-1} + b_t, and the last one.

    Args:
        a, b: (B, L, D), float32, float16 or bfloat16. initial: (B, D), float32.

    Returns: h (B, L, D) in their dtype, and (B, D), float32: the state is float32 in between.

    Raises UnsupportedDtype for other dtypes.
    """
    library = library_of(b)
    h, final = library.empty(b.shape, library.name(b), b), library.empty(initial.shape, "float32", initial)
    if 0 in a.shape:
        return h, library.copy(initial)
    return tuple(_launch(scan.FORWARD, [a, b, initial], *_scan_blocks(a), [h, final]))


def linear_scan_grad(g: Array, g_final: Array, a: Array, h: Array,
                     initial: Array) -> tuple[Array, Array, Array]:
    """Gradients of `linear_scan` in a, b and initial for those of its states (B, L, D) and of the last one (B, D), float32.

    Returns: d_a and d_b in a's dtype, d_initial in float32. Raises UnsupportedDtype for other dtypes.
    """
    library = library_of(a)
    d_a, d_b, d_initial = (library.empty(x.shape, library.name(x), x) for x in (a, a, g_final))
    if 0 in a.shape:
        return d_a, d_b, library.copy(g_final)
    return tuple(_launch(scan.BACKWARD, [g, g_final, a, h, initial], *_scan_blocks(a), [d_a, d_b, d_initial]))


def selective_scan(x: Array, dt: Array, A: Array, B: Array, C: Array, D: Array, initial: Array) -> tuple[Array, Array]:
    """y (B, L, D) in x's dtype and the last state (B, D, N) of `ember_ml.ops.selective_scan`; all but x are float32.

    Raises UnsupportedDtype for other dtypes.
    """
    library = library_of(x)
    outputs = [library.empty(x.shape, library.name(x), x), library.empty(initial.shape, "float32", initial)]
    return tuple(_launch(scan.SELECTIVE, [x, dt, A, B, C, D, initial], *_scan_blocks(x), outputs))


def selective_scan_grad(g: Array, g_last: Array, x: Array, dt: Array, A: Array, B: Array, C: Array, D: Array,
                        initial: Array) -> tuple[Array, ...]:
    """Gradients of `selective_scan` in its arguments for those of y (B, L, D), in x's dtype, and of the last state (B, D, N), float32.

    That in x has x's dtype, the others are float32. Raises UnsupportedDtype for other dtypes.
    """
    library, (batch, length, width), count = library_of(x), x.shape, A.shape[1]
    groups = -(-width // LANES)
    threads = (groups * batch, 1), (LANES, scan.back_segments(length))
    entering, = _launch(scan.SELECTIVE_STATES, [x, dt, A, B, initial], *threads,
                        [library.empty((batch, scan.back_tiles(length), count, width), "float32", x)])
    shapes = {"dt": dt.shape, "A": (batch, count, width), "B": (batch, groups, count, length), "C": (batch, groups, count, length),
              "D": (batch, width), "initial": initial.shape}
    outputs = [library.empty(x.shape, library.name(x), x), *(library.empty(shape, "float32", x) for shape in shapes.values())]
    d_x, d_dt, d_A, d_B, d_C, d_D, d_initial = _launch(
        scan.SELECTIVE_BACKWARD, [library.cast(g, library.name(x)), g_last, x, dt, A, B, C, D, entering], *threads, outputs)
    d_A, d_B, d_C = (library.aligned(sums.swapaxes(-2, -1)) for sums in (d_A.sum(0), d_B.sum(1), d_C.sum(1)))
    return d_x, d_dt, d_A, d_B, d_C, d_D.sum(0), d_initial


def moe_swiglu(h: Array, activation: str = "silu", glu: bool = True) -> Array:
    """silu(h[:, :F]) h[:, F:] for h (R, 2 F), float32, float16 or bfloat16; the options are those that the spec serves.

    Raises UnsupportedDtype for other dtypes.
    """
    library, rows, width = library_of(h), h.shape[0], h.shape[1] // 2
    out = library.empty((rows, width), library.name(h), h)
    if rows * width == 0:
        return out
    packs = moe.packs(width, library.itemsize(h))
    a, = _launch(moe.SWIGLU, [h], *_row_blocks(packs, rows, row_block(packs)), [out])
    return a


def moe_swiglu_backward(g: Array, h: Array, row_weights: Array, activation: str = "silu",
                        glu: bool = True) -> tuple[Array, Array, Array]:
    """Gradients through `moe_swiglu` and the rows' weights (R, 1), float32, for g (R, F) before these weights.

    Returns: d_h (R, 2 F), weighted; the activation times the weight, (R, F); d_weights (R,), float32.

    Raises UnsupportedDtype for other dtypes.
    """
    library, dtype = library_of(h), library_of(h).name(h)
    if 0 in g.shape:
        return library.empty(h.shape, dtype, h), library.empty(g.shape, dtype, h), library.full(h.shape[:1], 0, "float32", h)
    outputs = [library.empty(h.shape, dtype, h), library.empty(g.shape, dtype, h), library.empty(h.shape[:1], "float32", h)]
    _launch(moe.SWIGLU_BACKWARD, [g, h, row_weights], *_row_blocks(LANES, h.shape[0], (LANES, THREADS // LANES)), outputs)
    return tuple(outputs)


def moe_topk(x: Array, k: int = 2) -> Array:
    """int32 (..., k): indices of the k largest along the last axis, by falling value, ties to the lower index.

    NaN and minus infinity count as the least finite number. Raises UnsupportedDtype for other dtypes than the kernel's.
    """
    rows = prod(x.shape[:-1])
    out = library_of(x).empty((rows, k), "int32", x)
    if rows * k and x.shape[-1]:
        _launch(route.TOPK, [x.reshape(rows, -1)], *_warps(rows), [out], (k,))
    return out.reshape(*x.shape[:-1], k)


def _warps(rows: int) -> tuple[tuple, tuple]:
    """(blocks, block): a warp for every row."""
    return _row_blocks(LANES, rows, (LANES, THREADS // LANES))


def moe_choose(z: Array, bias: Array, *, k: int) -> Array:
    """int32 (T, k): the experts of largest softmax(z) + bias, for z (T, E) and bias (E,), float32. See `ops.moe.route`."""
    ids = library_of(z).empty((z.shape[0], k), "int32", z)
    if z.shape[0] * k:
        _launch(route.CHOOSE, [z, bias], *_warps(z.shape[0]), [ids], (k,))
    return ids


def moe_weigh(z: Array, ids: Array, *, normalize: bool, eps: float, scale: float) -> tuple[Array, Array]:
    """(weights (T, k), scores (T, E)), float32, for z (T, E), float32, and ids (T, k), int32. See `ops.moe.route`."""
    library = library_of(z)
    if 0 in (*z.shape, *ids.shape):
        return library.full(ids.shape, 0, "float32", z), library.full(z.shape, 0, "float32", z)
    outputs = [library.empty(ids.shape, "float32", z), library.empty(z.shape, "float32", z)]
    return tuple(_launch(route.WEIGH, [z, ids], *_warps(z.shape[0]), outputs, (int(normalize), float(eps), float(scale))))


def moe_weigh_grad(g: Array, g_scores: Array, ids: Array, scores: Array, *, normalize: bool, eps: float, scale: float) -> Array:
    """d_z (T, E) of `moe_weigh` for the gradients of its outputs."""
    library = library_of(g)
    if 0 in (*scores.shape, *ids.shape):
        return library.full(scores.shape, 0, "float32", g)
    d_z, = _launch(route.WEIGH_GRAD, [g, g_scores, ids, scores], *_warps(g.shape[0]), [library.empty(scores.shape, "float32", g)],
                   (int(normalize), float(eps), float(scale)))
    return d_z


def moe_plan(ids: Array, *, experts: int, block: int, rows: int, last: int) -> tuple[Array, Array, Array]:
    """(order, inverse, offsets) of `ember_ml.ops.moe.Plan` for ids int32 (T, K), of which none are 0; at most 1023 experts.

    Ids are moved into [0, last]. Raises UnsupportedDtype for other dtypes than int32.
    """
    library, pairs, flat = library_of(ids), prod(ids.shape), ids.reshape(-1)
    each = moe.pairs_of_a_part(pairs)
    parts = -(-pairs // each)
    ranks, counts, inverse, offsets = (library.empty(shape, "int32", ids) for shape in (
        (pairs,), (parts, experts + 1), (pairs,), (experts + 1,)))
    order = library.empty((rows,), "int32", ids) if rows == pairs else library.full((rows,), pairs, "int32", ids)
    how = _row_blocks(moe.TILE, parts, (moe.TILE, 1))
    _launch(moe.COUNT, [flat], *how, [ranks, counts], (experts, each, last))
    _launch(moe.PLACE, [flat, ranks, counts], *how, [order, inverse, offsets], (each, block, last))
    return order, inverse.reshape(ids.shape), offsets


def moe_gather(x: Array, order: Array, inverse: Array) -> Array:
    """y[r] = x[order[r] // K], zero where that is no row; x (T, D), order int32 (R,), inverse int32 (T, K).

    Raises UnsupportedDtype for other dtypes.
    """
    library, shape = library_of(x), (order.shape[0], x.shape[1])
    if 0 in shape or 0 in inverse.shape:
        return library.full(shape, 0, library.name(x), x)
    packs = moe.packs(shape[1], library.itemsize(x))
    y, = _launch(moe.GATHER, [x, order, inverse], *_row_blocks(packs, shape[0], row_block(packs)),
                 [library.empty(shape, library.name(x), x)])
    return y


#: launcher by the name of its KernelSpec
KERNELS = {"selective_scan": selective_scan, "selective_scan_grad": selective_scan_grad,
           "moe_choose": moe_choose, "moe_weigh": moe_weigh, "moe_weigh_grad": moe_weigh_grad, "fftconv": fftconv, "fftconv_grad": fftconv_grad, "short_conv": short_conv,
           "short_conv_grad": short_conv_grad, "linear_scan": linear_scan,
           "linear_scan_grad": linear_scan_grad, "moe_combine": moe_combine, "moe_combine_backward": moe_combine_backward,
           "moe_gather": moe_gather, "moe_plan": moe_plan, "moe_swiglu": moe_swiglu,
           "moe_swiglu_backward": moe_swiglu_backward, "moe_topk": moe_topk}
