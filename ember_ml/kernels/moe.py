"""The kernels of the mixture of experts (metal/moe.metal, cuda/moe.cu), and how they are launched."""

from __future__ import annotations

from math import prod

from ember_ml.kernels.gpu import Array, Gpu, Rows, rows, simdgroups
from ember_ml.kernels.spec import ONE_FORM, Entry, Form, KernelSpec, Sample, sample_values

_ROWS, _G, _INVERSE, _WEIGHTS = ("expert_out", "T"), ("g", "T"), ("inverse", "int32"), ("weights", "float32")

#: rows and width of the experts' outputs (N, D), tokens and slots of the routing (T, K)
_SIZES = (("expert_out", 0), ("expert_out", 1), ("inverse", 0), ("inverse", 1))

FORWARD = Entry("moe_combine_forward", (_ROWS, _INVERSE, _WEIGHTS), ("y",), _SIZES)
BACKWARD_ROWS = Entry("moe_combine_backward_rows", (_G, _ROWS, _INVERSE, _WEIGHTS), ("d_expert_out",), _SIZES)
BACKWARD_WEIGHTS = Entry("moe_combine_backward_weights", (_G, _ROWS, _INVERSE), ("d_weights",), _SIZES)


def _packed(gpu: Gpu, count: int, width: int, like: Array) -> Rows:
    """Threads for rows of `width` elements: on CUDA one per 16 bytes where these divide the row, else one each."""
    size = width * (4 if gpu.dtype(like) == "float32" else 2)
    return rows(count, size // 16 if gpu.language == "cuda" and size % 16 == 0 else width)


def _combine(gpu: Gpu, expert_out: Array, inverse: Array, weights: Array) -> Array:
    """y[t] = sum_k weights[t, k] expert_out[inverse[t, k]], summed in float32. Indices out of range are moved to the nearest row."""
    shape, dtype = (inverse.shape[0], expert_out.shape[1]), gpu.dtype(expert_out)
    if 0 in (*expert_out.shape, *inverse.shape):           # neither machine launches empty grids
        return gpu.zeros(shape, dtype, expert_out)
    return gpu.launch(FORWARD, [expert_out, inverse, weights], [(shape, dtype)], _packed(gpu, *shape, expert_out))[0]


def _combine_backward(gpu: Gpu, g: Array, expert_out: Array, inverse: Array, weights: Array) -> tuple[Array, Array]:
    """Gradients of `_combine`. A row that no pair owns gets zero; an index out of range owns no row, its part is dropped."""
    dtype = gpu.dtype(expert_out)
    if 0 in (*expert_out.shape, *inverse.shape):
        return gpu.zeros(expert_out.shape, dtype, expert_out), gpu.zeros(weights.shape, "float32", weights)
    (_, width), pairs = expert_out.shape, prod(inverse.shape)
    d_expert_out, = gpu.launch(BACKWARD_ROWS, [g, expert_out, inverse, weights], [(expert_out.shape, dtype)], rows(pairs, width), filled=0)
    d_weights, = gpu.launch(BACKWARD_WEIGHTS, [g, expert_out, inverse], [(weights.shape, "float32")], simdgroups(pairs))
    return d_expert_out, d_weights


def _sample() -> tuple[list, ...]:
    """expert_out, inverse, weights: more columns than lanes, and a row that no pair owns."""
    return sample_values(9, 37, seed=1), [[4, 0], [6, 2], [1, 3], [5, 8]], sample_values(4, 2, seed=2)


#: moe_combine(expert_out (N, D), inverse int32 (T, K), weights float32 (T, K)) -> y (T, D) in expert_out's dtype
MOE_COMBINE = KernelSpec("moe_combine", (FORWARD,), _combine, lambda _: Sample(_sample()), registers=40)

#: moe_combine_backward(g (T, D), expert_out, inverse, weights) -> d_expert_out (N, D), d_weights float32 (T, K)
MOE_COMBINE_BACKWARD = KernelSpec("moe_combine_backward", (BACKWARD_ROWS, BACKWARD_WEIGHTS), _combine_backward,
                                  lambda _: Sample((sample_values(4, 37, seed=3), *_sample())), registers=40)

_HIDDEN = (("h", 0), ("h", 1))
SWIGLU = Entry("moe_swiglu_forward", (("h", "T"),), ("a",), _HIDDEN)
SWIGLU_BACKWARD = Entry("moe_swiglu_backward", (("g", "T"), ("h", "T"), ("row_weights", "float32")),
                        ("d_h", "scaled", "d_weights"), _HIDDEN)


def _swiglu(gpu: Gpu, h: Array, activation: str = "silu", glu: bool = True) -> Array:
    """silu(h[:, :F]) h[:, F:]; the options are those that the spec serves."""
    shape, dtype = (h.shape[0], h.shape[1] // 2), gpu.dtype(h)
    if 0 in shape:
        return gpu.zeros(shape, dtype, h)
    return gpu.launch(SWIGLU, [h], [(shape, dtype)], _packed(gpu, *shape, h))[0]


def _swiglu_backward(gpu: Gpu, g: Array, h: Array, row_weights: Array, activation: str = "silu", glu: bool = True) -> tuple[Array, ...]:
    """Gradients through `_swiglu` and the rows' weights, for g before these: d_h, weighted; the activation times the weight; d_weights."""
    outputs = [(h.shape, gpu.dtype(h)), (g.shape, gpu.dtype(h)), (h.shape[:1], "float32")]
    if 0 in g.shape:
        return tuple(gpu.zeros(*output, h) for output in outputs)
    return gpu.launch(SWIGLU_BACKWARD, [g, h, row_weights], outputs, simdgroups(h.shape[0]))


def _swiglu_form(*_, activation="silu", glu=True) -> Form | None:
    return ONE_FORM if activation == "silu" and glu else None


#: moe_swiglu(h (R, 2 F)) -> (R, F) in h's dtype
MOE_SWIGLU = KernelSpec("moe_swiglu", (SWIGLU,), _swiglu, lambda _: Sample((sample_values(8, 74, seed=4),)), registers=40, form=_swiglu_form)

#: moe_swiglu_backward(g (R, F), h (R, 2 F), row_weights float32 (R, 1)) -> d_h (R, 2 F), scaled (R, F), d_weights float32 (R,)
MOE_SWIGLU_BACKWARD = KernelSpec(
    "moe_swiglu_backward", (SWIGLU_BACKWARD,), _swiglu_backward,
    lambda _: Sample((sample_values(8, 37, seed=5), sample_values(8, 74, seed=4), sample_values(8, 1, seed=6))), registers=64,
    form=_swiglu_form)

#: pairs that a threadgroup looks at together, and the most experts, as the kernels name them
TILE, EXPERTS = 256, 1024

_IDS = ("ids", "int32")
COUNT = Entry("moe_count", (_IDS,), ("ranks", "counts"), (("ids", 0),), "Tiles", ("experts", "each", "last"))
PLACE = Entry("moe_place", (_IDS, ("ranks", "int32"), ("counts", "int32")), ("order", "inverse", "offsets"),
              (("ids", 0), ("counts", 0), ("counts", 1)), "Places", ("each", "block", "last"))


def pairs_of_a_part(pairs: int) -> int:
    """Pairs that a threadgroup counts: two tiles, and more where there would be more than 256 threadgroups."""
    return 2 * TILE * max(1, -(-pairs // (2 * TILE * 256)))


def _plan(gpu: Gpu, ids: Array, *, experts: int, block: int, rows: int, last: int) -> tuple[Array, Array, Array]:
    """(order, inverse, offsets) of `ember_ml.ops.moe.Plan`. Ids are moved into [0, last]."""
    pairs, flat = prod(ids.shape), ids.reshape(-1)
    each = pairs_of_a_part(pairs)
    parts = -(-pairs // each)
    grid = Rows(parts, TILE, (TILE, 1))
    ranks, counts = gpu.launch(COUNT, [flat], [((pairs,), "int32"), ((parts, experts + 1), "int32")], grid, (experts, each, last))
    order, inverse, offsets = gpu.launch(
        PLACE, [flat, ranks, counts], [((rows,), "int32"), ((pairs,), "int32"), ((experts + 1,), "int32")], grid, (each, block, last),
        None if rows == pairs else pairs)
    return order, inverse.reshape(ids.shape), offsets


def _plan_form(ids, *, experts, block, rows, last) -> Form | None:
    return ONE_FORM if 0 < experts < EXPERTS and 0 not in ids.shape else None


#: moe_plan(ids int32 (T, K), experts, block, rows, last) -> order int32 (rows,), inverse int32 (T, K), offsets int32 (experts + 1,)
MOE_PLAN = KernelSpec("moe_plan", (COUNT, PLACE), _plan, lambda _: Sample(
    ([[i * i % 5, i % 3] for i in range(301)],), {"experts": 4, "block": 1, "rows": 602, "last": 4}), registers=40, shared_bytes=8192,
    form=_plan_form)

GATHER = Entry("moe_gather", (("x", "T"), ("order", "int32"), ("inverse", "int32")), ("y",),
               (("x", 0), ("x", 1), ("order", 0), ("inverse", 1)))


def _gather(gpu: Gpu, x: Array, order: Array, inverse: Array) -> Array:
    """y[r] = x[order[r] // K], zero where that is no row."""
    shape, dtype = (order.shape[0], x.shape[1]), gpu.dtype(x)
    if 0 in (*shape, *inverse.shape):
        return gpu.zeros(shape, dtype, x)
    return gpu.launch(GATHER, [x, order, inverse], [(shape, dtype)], _packed(gpu, *shape, x))[0]


#: moe_gather(x (T, D), order int32 (R,), inverse int32 (T, K)) -> (R, D) in x's dtype
MOE_GATHER = KernelSpec("moe_gather", (GATHER,), _gather,
                        lambda _: Sample((sample_values(4, 37, seed=7), [5, 0, 8, 2, 1, 4, 3, 7, 6], [[0, 0]] * 4)), registers=32)
