"""Launches Ember's Metal kernels through mx.fast.metal_kernel. Functions take and return mx.arrays and are lazy."""

from __future__ import annotations

from functools import cache, lru_cache

import mlx.core as mx

from ember_ml.kernels import LANES, THREADS, moe, route, row_block, scan, source_text
from ember_ml.kernels.spec import Entry
from ember_mlx.fftconv_kernels import fftconv, fftconv_grad
from ember_mlx.shortconv_kernels import short_conv, short_conv_grad


def available() -> bool:
    """Whether kernels can run: there is Metal, and MLX has not been told to compute on the CPU."""
    return mx.metal.is_available() and mx.default_device() == mx.gpu


def body(entry: Entry) -> str:
    """The source that MLX wraps into a kernel: one call of the entry's function in the .metal file."""
    function = entry.name.removeprefix(f"{entry.stem}_")
    sizes = [f"uint({name}_shape[{axis}])" for name, axis in entry.sizes]
    shared = f"threadgroup {entry.stem}::{entry.shared} shared; " if entry.shared else ""
    arguments = [*entry.input_names, *entry.outputs, *sizes, *entry.numbers, *(["shared"] if shared else []), "thread_position_in_grid"]
    return f"{shared}{entry.stem}::{function}({', '.join(arguments)});"


@cache
def _kernel(entry: Entry):
    """Made once: MLX builds its text anew from header and source at every call, and compiles by the kernel's name."""
    return mx.fast.metal_kernel(
        name=entry.name, input_names=(*entry.input_names, *entry.numbers), output_names=entry.outputs, source=body(entry),
        header=source_text("metal", entry.stem))


def _launch(entry: Entry, inputs, threads, group, outputs, numbers=(), filled=None) -> list[mx.array]:
    """Arrays of the (shape, dtype) in `outputs`, by `threads` (x, y, z) in groups of `group` (x, y, z).

    Elements that the kernel leaves alone are `filled`, if it leaves any.

    Raises UnsupportedDtype if the kernel does not take the inputs' dtypes.
    """
    entry.own_dtype([str(x.dtype).removeprefix("mlx.core.") for x in inputs])
    shapes, dtypes = zip(*outputs)
    return _kernel(entry)(inputs=[*inputs, *map(_number, numbers)], grid=threads, threadgroup=group, output_shapes=list(shapes),
                          output_dtypes=list(dtypes), init_value=filled)


@lru_cache(maxsize=256)
def _number(value: int | float) -> mx.array:
    return mx.array(value, mx.float32 if isinstance(value, float) else mx.uint32)


def moe_combine(expert_out: mx.array, inverse: mx.array, weights: mx.array) -> mx.array:
    """y[t] = sum_k weights[t, k] expert_out[inverse[t, k]].

    Args:
        expert_out: (N, D), float32, float16 or bfloat16. inverse: (T, K), int32. weights: (T, K), float32.

    Returns: (T, D) in expert_out's dtype, summed in float32. Indices out of range are moved to the nearest row.

    Raises UnsupportedDtype for other dtypes.
    """
    shape = (inverse.shape[0], expert_out.shape[1])
    if expert_out.size == 0 or inverse.size == 0:          # Metal launches no empty grids
        return mx.zeros(shape, expert_out.dtype)
    width = shape[1]
    y, = _launch(moe.FORWARD, [expert_out, inverse, weights], (width, shape[0], 1), (*row_block(width), 1),
                 [(shape, expert_out.dtype)])
    return y


def moe_combine_backward(g: mx.array, expert_out: mx.array, inverse: mx.array,
                         weights: mx.array) -> tuple[mx.array, mx.array]:
    """Gradients of `moe_combine` for its output's gradient g (T, D), which has expert_out's dtype.

    Returns: d_expert_out (N, D) in expert_out's dtype, zero in rows that no pair owns; d_weights (T, K), float32.
    An index out of range owns no row: its part of d_expert_out is dropped.

    Raises UnsupportedDtype for other dtypes.
    """
    if expert_out.size == 0 or inverse.size == 0:
        return mx.zeros_like(expert_out), mx.zeros(weights.shape, mx.float32)
    (_, width), pairs = expert_out.shape, inverse.size
    d_expert_out, = _launch(moe.BACKWARD_ROWS, [g, expert_out, inverse, weights], (width, pairs, 1), (*row_block(width), 1),
                            [(expert_out.shape, expert_out.dtype)], filled=0)
    d_weights, = _launch(moe.BACKWARD_WEIGHTS, [g, expert_out, inverse], (LANES, pairs, 1), (LANES, THREADS // LANES, 1),
                         [(weights.shape, mx.float32)])
    return d_expert_out, d_weights


def _scan_threads(a: mx.array) -> tuple[tuple, tuple]:
    """(threads, group): a group for every LANES channels of every sequence, a row of its threads for each segment."""
    batch, length, width = a.shape
    rows = scan.segments("metal", length)
    return (-(-width // LANES) * LANES, rows, batch), (LANES, rows, 1)


def linear_scan(a: mx.array, b: mx.array, initial: mx.array) -> tuple[mx.array, mx.array]:
    """All states of h_t = a_t h_{t-1} + b_t, and the last one.

    Args:
        a, b: (B, L, D), float32, float16 or bfloat16. initial: (B, D), float32.

    Returns: h (B, L, D) in their dtype, and (B, D), float32: the state is float32 in between.

    Raises UnsupportedDtype for other dtypes.
    """
    if a.size == 0:
        return mx.zeros_like(b), initial
    h, final = _launch(scan.FORWARD, [a, b, initial], *_scan_threads(a), [(a.shape, a.dtype), (initial.shape, mx.float32)])
    return h, final


def linear_scan_grad(g: mx.array, g_final: mx.array, a: mx.array, h: mx.array,
                     initial: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """Gradients of `linear_scan` in a, b and initial for those of its states (B, L, D) and of the last one (B, D), float32.

    Returns: d_a and d_b in a's dtype, d_initial in float32. Raises UnsupportedDtype for other dtypes.
    """
    if a.size == 0:
        return mx.zeros_like(a), mx.zeros_like(a), g_final
    outputs = [(a.shape, a.dtype), (a.shape, a.dtype), (initial.shape, mx.float32)]
    return tuple(_launch(scan.BACKWARD, [g, g_final, a, h, initial], *_scan_threads(a), outputs))


def selective_scan(x, dt, A, B, C, D, initial) -> tuple[mx.array, mx.array]:
    """y (B, L, D) in x's dtype and the last state (B, D, N) of `ember_ml.ops.selective_scan`; all but x are float32.

    Raises UnsupportedDtype for other dtypes.
    """
    return tuple(_launch(scan.SELECTIVE, [x, dt, A, B, C, D, initial], *_scan_threads(x),
                         [(x.shape, x.dtype), (initial.shape, mx.float32)]))


def selective_scan_grad(g, g_last, x, dt, A, B, C, D, initial) -> tuple[mx.array, ...]:
    """Gradients of `selective_scan` in its arguments for those of y (B, L, D), in x's dtype, and of the last state (B, D, N), float32.

    That in x has x's dtype, the others are float32. Raises UnsupportedDtype for other dtypes.
    """
    (batch, length, width), count = x.shape, A.shape[1]
    groups, rows = -(-width // LANES), scan.back_segments(length)
    threads = (groups * LANES, rows, batch), (LANES, rows, 1)
    entering, = _launch(scan.SELECTIVE_STATES, [x, dt, A, B, initial], *threads,
                        [((batch, scan.back_tiles(length), count, width), mx.float32)])
    shapes = (dt.shape, (batch, count, width), (batch, groups, count, length), (batch, groups, count, length), (batch, width), initial.shape)
    d_x, d_dt, d_A, d_B, d_C, d_D, d_initial = _launch(
        scan.SELECTIVE_BACKWARD, [g.astype(x.dtype), g_last, x, dt, A, B, C, D, entering], *threads,
        [(x.shape, x.dtype), *((shape, mx.float32) for shape in shapes)])
    return d_x, d_dt, d_A.sum(0).swapaxes(0, 1), d_B.sum(1).swapaxes(1, 2), d_C.sum(1).swapaxes(1, 2), d_D.sum(0), d_initial


def moe_swiglu(h: mx.array, activation: str = "silu", glu: bool = True) -> mx.array:
    """silu(h[:, :F]) h[:, F:] for h (R, 2 F), float32, float16 or bfloat16; the options are those that the spec serves.

    Raises UnsupportedDtype for other dtypes.
    """
    rows, width = h.shape[0], h.shape[1] // 2
    if rows * width == 0:
        return mx.zeros((rows, width), h.dtype)
    a, = _launch(moe.SWIGLU, [h], (width, rows, 1), (*row_block(width), 1), [((rows, width), h.dtype)])
    return a


def moe_swiglu_backward(g: mx.array, h: mx.array, row_weights: mx.array, activation: str = "silu",
                        glu: bool = True) -> tuple[mx.array, mx.array, mx.array]:
    """Gradients through `moe_swiglu` and the rows' weights (R, 1), float32, for g (R, F) before these weights.

    Returns: d_h (R, 2 F), weighted; the activation times the weight, (R, F); d_weights (R,), float32.

    Raises UnsupportedDtype for other dtypes.
    """
    rows = h.shape[0]
    if g.size == 0:
        return mx.zeros_like(h), mx.zeros_like(g), mx.zeros((rows,), mx.float32)
    return tuple(_launch(moe.SWIGLU_BACKWARD, [g, h, row_weights], (LANES, rows, 1), (LANES, THREADS // LANES, 1),
                         [(h.shape, h.dtype), (g.shape, h.dtype), ((rows,), mx.float32)]))


def moe_topk(x: mx.array, k: int = 2) -> mx.array:
    """int32 (..., k): indices of the k largest along the last axis, by falling value, ties to the lower index.

    NaN and minus infinity count as the least finite number. Raises UnsupportedDtype for other dtypes than the kernel's.
    """
    rows = x.size // max(x.shape[-1], 1)
    if rows * k == 0:
        return mx.zeros((*x.shape[:-1], k), mx.int32)
    ids, = _launch(route.TOPK, [x.reshape(rows, -1)], *_simdgroups(rows), [((rows, k), mx.int32)], (k,))
    return ids.reshape(*x.shape[:-1], k)


def _simdgroups(rows: int) -> tuple[tuple, tuple]:
    """(threads, group): a simdgroup for every row."""
    return (LANES, rows, 1), (LANES, THREADS // LANES, 1)


def moe_choose(z: mx.array, bias: mx.array, *, k: int) -> mx.array:
    """int32 (T, k): the experts of largest softmax(z) + bias, for z (T, E) and bias (E,), float32. See `ops.moe.route`."""
    rows = z.shape[0]
    if rows * k == 0:
        return mx.zeros((rows, k), mx.int32)
    return _launch(route.CHOOSE, [z, bias], *_simdgroups(rows), [((rows, k), mx.int32)], (k,))[0]


def moe_weigh(z: mx.array, ids: mx.array, *, normalize: bool, eps: float, scale: float) -> tuple[mx.array, mx.array]:
    """(weights (T, k), scores (T, E)), float32, for z (T, E), float32, and ids (T, k), int32. See `ops.moe.route`."""
    if 0 in (*z.shape, *ids.shape):
        return mx.zeros(ids.shape, mx.float32), mx.zeros_like(z)
    return tuple(_launch(route.WEIGH, [z, ids], *_simdgroups(z.shape[0]), [(ids.shape, mx.float32), (z.shape, mx.float32)],
                         (int(normalize), float(eps), float(scale))))


def moe_weigh_grad(g: mx.array, g_scores: mx.array, ids: mx.array, scores: mx.array, *, normalize: bool, eps: float,
                   scale: float) -> mx.array:
    """d_z (T, E) of `moe_weigh` for the gradients of its outputs."""
    if 0 in (*scores.shape, *ids.shape):
        return mx.zeros_like(scores)
    return _launch(route.WEIGH_GRAD, [g, g_scores, ids, scores], *_simdgroups(g.shape[0]), [(scores.shape, mx.float32)],
                   (int(normalize), float(eps), float(scale)))[0]


def moe_plan(ids: mx.array, *, experts: int, block: int, rows: int, last: int) -> tuple[mx.array, mx.array, mx.array]:
    """(order, inverse, offsets) of `ember_ml.ops.moe.Plan` for ids int32 (T, K), of which none are 0; at most 1023 experts.

    Ids are moved into [0, last]. Raises UnsupportedDtype for other dtypes than int32.
    """
    pairs, flat = ids.size, ids.reshape(-1)
    each = moe.pairs_of_a_part(pairs)
    parts, group = -(-pairs // each), (moe.TILE, 1, 1)
    ranks, counts = _launch(moe.COUNT, [flat], (moe.TILE, parts, 1), group,
                            [((pairs,), mx.int32), ((parts, experts + 1), mx.int32)], (experts, each, last))
    order, inverse, offsets = _launch(
        moe.PLACE, [flat, ranks, counts], (moe.TILE, parts, 1), group,
        [((rows,), mx.int32), ((pairs,), mx.int32), ((experts + 1,), mx.int32)], (each, block, last), None if rows == pairs else pairs)
    return order, inverse.reshape(ids.shape), offsets


def moe_gather(x: mx.array, order: mx.array, inverse: mx.array) -> mx.array:
    """y[r] = x[order[r] // K], zero where that is no row; x (T, D), order int32 (R,), inverse int32 (T, K).

    Raises UnsupportedDtype for other dtypes.
    """
    shape = (order.shape[0], x.shape[1])
    if 0 in shape or inverse.size == 0:
        return mx.zeros(shape, x.dtype)
    y, = _launch(moe.GATHER, [x, order, inverse], (*shape[::-1], 1), (*row_block(shape[1]), 1), [(shape, x.dtype)])
    return y


#: launcher by the name of its KernelSpec
KERNELS = {"selective_scan": selective_scan, "selective_scan_grad": selective_scan_grad,
           "moe_choose": moe_choose, "moe_weigh": moe_weigh, "moe_weigh_grad": moe_weigh_grad, "fftconv": fftconv, "fftconv_grad": fftconv_grad, "short_conv": short_conv,
           "short_conv_grad": short_conv_grad, "linear_scan": linear_scan,
           "linear_scan_grad": linear_scan_grad, "moe_combine": moe_combine,
           "moe_combine_backward": moe_combine_backward, "moe_gather": moe_gather, "moe_plan": moe_plan, "moe_swiglu": moe_swiglu,
           "moe_swiglu_backward": moe_swiglu_backward, "moe_topk": moe_topk}
