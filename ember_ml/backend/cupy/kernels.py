"""Launches Ember's CUDA kernels through cupy.RawModule, on the current device and stream.

Functions take and return cupy.ndarrays. NVRTC compiles a file once per dtype; CuPy keeps the result on disk.
"""

from __future__ import annotations

from functools import cache

import cupy
import numpy as np

from ember_ml.backend.cupy.fftconv import fftconv, fftconv_grad
from ember_ml.kernels import LANES, SPECS, THREADS, moe, row_block, scan, source_text
from ember_ml.kernels.spec import Entry

_C_TYPES = {"float32": "float", "float16": "__half", "bfloat16": "__nv_bfloat16"}

#: entries of each file; those that are made for a dtype are compiled together
_ENTRIES = {stem: [entry for spec in SPECS if spec.stem == stem for entry in spec.entries] for stem in ("moe", "scan")}


@cache
def _module(stem: str, typed: bool, dtype: str):
    names = [_expression(entry, dtype) for entry in _ENTRIES[stem] if entry.typed == typed]
    return cupy.RawModule(code=source_text("cuda", stem), options=("-std=c++17",), name_expressions=names)


def _expression(entry: Entry, dtype: str) -> str:
    return f"{entry.name}<{_C_TYPES[dtype]}>" if entry.typed else entry.name


@cache
def _kernel(entry: Entry, dtype: str):
    return _module(entry.stem, entry.typed, dtype if entry.typed else "").get_function(_expression(entry, dtype))


def _launch(entry: Entry, inputs, blocks, block, outputs, numbers=()):
    """Fills `outputs`, by `blocks` (x, y) of threads, each of the size `block` (x, y), and returns them.

    Raises UnsupportedDtype if the kernel does not take the inputs' dtypes.
    """
    dtype = entry.own_dtype([array.dtype.name for array in inputs])
    inputs = [_aligned(array) for array in inputs]
    shapes = {name: array.shape for name, array in zip(entry.input_names, inputs)}
    sizes = [np.uint32(n) for n in (*(shapes[name][axis] for name, axis in entry.sizes), *numbers)]
    _kernel(entry, dtype)(blocks, block, (*inputs, *outputs, *sizes))
    return outputs


def _aligned(array: cupy.ndarray) -> cupy.ndarray:
    """Contiguous, from a multiple of 16 bytes on, which is what some kernels move at once."""
    array = cupy.ascontiguousarray(array)
    return array.copy() if array.data.ptr % 16 else array


def _row_blocks(width: int, rows: int, block: tuple[int, int]) -> tuple[tuple, tuple]:
    """(blocks, block) for `rows` rows of `width` threads; blockIdx.x counts along y, see cuda/moe.cu."""
    return (-(-rows // block[1]), -(-width // block[0])), block


def moe_combine(expert_out: cupy.ndarray, inverse: cupy.ndarray, weights: cupy.ndarray) -> cupy.ndarray:
    """y[t] = sum_k weights[t, k] expert_out[inverse[t, k]].

    Args:
        expert_out: (N, D), float32, float16 or bfloat16. inverse: (T, K), int32. weights: (T, K), float32.

    Returns: (T, D) in expert_out's dtype, summed in float32. Indices out of range are moved to the nearest row.

    Raises UnsupportedDtype for other dtypes.
    """
    shape = (inverse.shape[0], expert_out.shape[1])
    if expert_out.size == 0 or inverse.size == 0:          # CUDA launches no empty grids
        return cupy.zeros(shape, expert_out.dtype)
    packs = moe.packs(shape[1], expert_out.dtype.itemsize)
    y, = _launch(moe.FORWARD, [expert_out, inverse, weights], *_row_blocks(packs, shape[0], row_block(packs)),
                 [cupy.empty(shape, expert_out.dtype)])
    return y


def moe_combine_backward(g: cupy.ndarray, expert_out: cupy.ndarray, inverse: cupy.ndarray,
                         weights: cupy.ndarray) -> tuple[cupy.ndarray, cupy.ndarray]:
    """Gradients of `moe_combine` for its output's gradient g (T, D), which has expert_out's dtype.

    Returns: d_expert_out (N, D) in expert_out's dtype, zero in rows that no pair owns; d_weights (T, K), float32.
    An index out of range owns no row: its part of d_expert_out is dropped.

    Raises UnsupportedDtype for other dtypes.
    """
    d_expert_out = cupy.zeros(expert_out.shape, expert_out.dtype)
    if expert_out.size == 0 or inverse.size == 0:
        return d_expert_out, cupy.zeros(weights.shape, cupy.float32)
    (_, width), pairs = expert_out.shape, inverse.size
    _launch(moe.BACKWARD_ROWS, [g, expert_out, inverse, weights], *_row_blocks(width, pairs, row_block(width)), [d_expert_out])
    d_weights, = _launch(moe.BACKWARD_WEIGHTS, [g, expert_out, inverse], *_row_blocks(LANES, pairs, (LANES, THREADS // LANES)),
                         [cupy.empty(weights.shape, cupy.float32)])
    return d_expert_out, d_weights


def _scan_blocks(a: cupy.ndarray) -> tuple[tuple, tuple]:
    """(blocks, block): a block for every LANES channels of every sequence, a row of its threads for each segment."""
    batch, length, width = a.shape
    return (-(-width // LANES) * batch, 1), (LANES, scan.segments("cuda", length))


def linear_scan(a: cupy.ndarray, b: cupy.ndarray, initial: cupy.ndarray) -> tuple[cupy.ndarray, cupy.ndarray]:
    """All states of h_t = a_t h_{t-1} + b_t, and the last one.

    Args:
        a, b: (B, L, D), float32, float16 or bfloat16. initial: (B, D), float32.

    Returns: h (B, L, D) in their dtype, and (B, D), float32: the state is float32 in between.

    Raises UnsupportedDtype for other dtypes.
    """
    h, final = cupy.empty(b.shape, b.dtype), cupy.empty(initial.shape, cupy.float32)
    if a.size == 0:
        return h, initial.copy()
    return tuple(_launch(scan.FORWARD, [a, b, initial], *_scan_blocks(a), [h, final]))


def linear_scan_grad(g: cupy.ndarray, g_final: cupy.ndarray, a: cupy.ndarray, h: cupy.ndarray,
                     initial: cupy.ndarray) -> tuple[cupy.ndarray, cupy.ndarray, cupy.ndarray]:
    """Gradients of `linear_scan` in a, b and initial for those of its states (B, L, D) and of the last one (B, D), float32.

    Returns: d_a and d_b in a's dtype, d_initial in float32. Raises UnsupportedDtype for other dtypes.
    """
    d_a, d_b, d_initial = (cupy.empty(x.shape, x.dtype) for x in (a, a, g_final))
    if a.size == 0:
        return d_a, d_b, g_final.copy()
    return tuple(_launch(scan.BACKWARD, [g, g_final, a, h, initial], *_scan_blocks(a), [d_a, d_b, d_initial]))


def moe_swiglu(h: cupy.ndarray, activation: str = "silu", glu: bool = True) -> cupy.ndarray:
    """silu(h[:, :F]) h[:, F:] for h (R, 2 F), float32, float16 or bfloat16; the options are those that the spec serves.

    Raises UnsupportedDtype for other dtypes.
    """
    rows, width = h.shape[0], h.shape[1] // 2
    out = cupy.empty((rows, width), h.dtype)
    if out.size == 0:
        return out
    packs = moe.packs(width, h.dtype.itemsize)
    a, = _launch(moe.SWIGLU, [h], *_row_blocks(packs, rows, row_block(packs)), [out])
    return a


def moe_swiglu_backward(g: cupy.ndarray, h: cupy.ndarray, row_weights: cupy.ndarray, activation: str = "silu",
                        glu: bool = True) -> tuple[cupy.ndarray, cupy.ndarray, cupy.ndarray]:
    """Gradients through `moe_swiglu` and the rows' weights (R, 1), float32, for g (R, F) before these weights.

    Returns: d_h (R, 2 F), weighted; the activation times the weight, (R, F); d_weights (R,), float32.

    Raises UnsupportedDtype for other dtypes.
    """
    outputs = [cupy.empty(h.shape, h.dtype), cupy.empty(g.shape, h.dtype), cupy.zeros(h.shape[:1], cupy.float32)]
    if g.size:
        _launch(moe.SWIGLU_BACKWARD, [g, h, row_weights], *_row_blocks(LANES, h.shape[0], (LANES, THREADS // LANES)), outputs)
    return tuple(outputs)


def moe_topk(x: cupy.ndarray, k: int = 2) -> cupy.ndarray:
    """int32 (..., k): indices of the k largest along the last axis, by falling value, ties to the lower index.

    NaN and minus infinity count as the least finite number. Raises UnsupportedDtype for other dtypes than the kernel's.
    """
    rows = x.size // max(x.shape[-1], 1)
    out = cupy.empty((rows, k), cupy.int32)
    if out.size:
        _launch(moe.TOPK, [x.reshape(rows, -1)], *_row_blocks(LANES, rows, (LANES, THREADS // LANES)), [out], (k,))
    return out.reshape(*x.shape[:-1], k)


def moe_plan(ids: cupy.ndarray, *, experts: int, block: int, rows: int) -> tuple[cupy.ndarray, cupy.ndarray, cupy.ndarray]:
    """(order, inverse, offsets) of `ember_ml.ops.moe.Plan` for ids int32 (T, K), of which none are 0; at most 1023 experts.

    Ids out of range are nobody's. Raises UnsupportedDtype for other dtypes than int32.
    """
    pairs, flat = ids.size, ids.reshape(-1)
    each = moe.pairs_of_a_part(pairs)
    parts = -(-pairs // each)
    counts, inverse = cupy.empty((parts, experts + 1), cupy.int32), cupy.empty((pairs,), cupy.int32)
    order = cupy.empty((rows,), cupy.int32) if rows == pairs else cupy.full((rows,), pairs, cupy.int32)
    how = _row_blocks(moe.TILE, parts, (moe.TILE, 1))
    ranks, _ = _launch(moe.COUNT, [flat], *how, [cupy.empty((pairs,), cupy.int32), counts], (experts, each))
    _, _, offsets = _launch(moe.PLACE, [flat, ranks, counts], *how, [order, inverse, cupy.empty((experts + 1,), cupy.int32)],
                            (each, block))
    return order, inverse.reshape(ids.shape), offsets


def moe_gather(x: cupy.ndarray, order: cupy.ndarray, inverse: cupy.ndarray) -> cupy.ndarray:
    """y[r] = x[order[r] // K], zero where that is no row; x (T, D), order int32 (R,), inverse int32 (T, K).

    Raises UnsupportedDtype for other dtypes.
    """
    shape = (order.shape[0], x.shape[1])
    if 0 in shape or inverse.size == 0:
        return cupy.zeros(shape, x.dtype)
    packs = moe.packs(shape[1], x.dtype.itemsize)
    y, = _launch(moe.GATHER, [x, order, inverse], *_row_blocks(packs, shape[0], row_block(packs)), [cupy.empty(shape, x.dtype)])
    return y


#: launcher by the name of its KernelSpec
KERNELS = {"fftconv": fftconv, "fftconv_grad": fftconv_grad, "linear_scan": linear_scan,
           "linear_scan_grad": linear_scan_grad, "moe_combine": moe_combine, "moe_combine_backward": moe_combine_backward,
           "moe_gather": moe_gather, "moe_plan": moe_plan, "moe_swiglu": moe_swiglu,
           "moe_swiglu_backward": moe_swiglu_backward, "moe_topk": moe_topk}
