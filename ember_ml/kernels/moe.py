"""The kernels of the mixture of experts (metal/moe.metal, cuda/moe.cu)."""

from __future__ import annotations

from ember_ml.kernels.spec import Entry, KernelSpec, sample_values

_ROWS, _G, _INVERSE, _WEIGHTS = ("expert_out", "T"), ("g", "T"), ("inverse", "int32"), ("weights", "float32")

#: rows and width of the experts' outputs (N, D), tokens and slots of the routing (T, K)
_SIZES = (("expert_out", 0), ("expert_out", 1), ("inverse", 0), ("inverse", 1))

FORWARD = Entry("moe_combine_forward", (_ROWS, _INVERSE, _WEIGHTS), ("y",), _SIZES)
BACKWARD_ROWS = Entry("moe_combine_backward_rows", (_G, _ROWS, _INVERSE, _WEIGHTS), ("d_expert_out",), _SIZES)
BACKWARD_WEIGHTS = Entry("moe_combine_backward_weights", (_G, _ROWS, _INVERSE), ("d_weights",), _SIZES)


def _sample() -> tuple[list, ...]:
    """expert_out, inverse, weights: more columns than lanes, and a row that no pair owns."""
    return sample_values(7, 37, seed=1), [[4, 0], [6, 2], [1, 3]], sample_values(3, 2, seed=2)


#: moe_combine(expert_out (N, D), inverse int32 (T, K), weights float32 (T, K)) -> y (T, D) in expert_out's dtype
MOE_COMBINE = KernelSpec("moe_combine", (FORWARD,), _sample, registers=40)

#: moe_combine_backward(g (T, D), expert_out, inverse, weights) -> d_expert_out (N, D), d_weights float32 (T, K).
#: A row that no pair owns gets zero. A pair whose index is out of range owns no row: its part is dropped.
MOE_COMBINE_BACKWARD = KernelSpec("moe_combine_backward", (BACKWARD_ROWS, BACKWARD_WEIGHTS),
                                  lambda: (sample_values(3, 37, seed=3), *_sample()), registers=40)

_HIDDEN = (("h", 0), ("h", 1))
SWIGLU = Entry("moe_swiglu_forward", (("h", "T"),), ("a",), _HIDDEN)
SWIGLU_BACKWARD = Entry("moe_swiglu_backward", (("g", "T"), ("h", "T"), ("row_weights", "float32")),
                        ("d_h", "scaled", "d_weights"), _HIDDEN)


def packs(width: int, itemsize: int) -> int:
    """Threads that cuda/moe.cu wants for a row of `width` elements: one per 16 bytes where these divide the row, else one each."""
    return width * itemsize // 16 if width * itemsize % 16 == 0 else width


def _serves_swiglu(*_, activation="silu", glu=True) -> bool:
    return activation == "silu" and glu


#: moe_swiglu(h (R, 2 F)) -> silu(h[:, :F]) h[:, F:] in h's dtype
MOE_SWIGLU = KernelSpec("moe_swiglu", (SWIGLU,), lambda: (sample_values(5, 74, seed=4),), registers=40, serves=_serves_swiglu)

#: moe_swiglu_backward(g (R, F), h (R, 2 F), row_weights float32 (R, 1)) -> d_h (R, 2 F), scaled (R, F), d_weights float32 (R,)
MOE_SWIGLU_BACKWARD = KernelSpec(
    "moe_swiglu_backward", (SWIGLU_BACKWARD,),
    lambda: (sample_values(5, 37, seed=5), sample_values(5, 74, seed=4), sample_values(5, 1, seed=6)), registers=64,
    serves=_serves_swiglu)

#: pairs that a threadgroup looks at together, and the most experts, as the kernels name them
TILE, EXPERTS = 256, 1024

_IDS = ("ids", "int32")
COUNT = Entry("moe_count", (_IDS,), ("ranks", "counts"), (("ids", 0),), "Tiles", ("experts", "each", "last"))
PLACE = Entry("moe_place", (_IDS, ("ranks", "int32"), ("counts", "int32")), ("order", "inverse", "offsets"),
              (("ids", 0), ("counts", 0), ("counts", 1)), "Places", ("each", "block", "last"))


def pairs_of_a_part(pairs: int) -> int:
    """Pairs that a threadgroup counts: two tiles, and more where there would be more than 256 threadgroups."""
    return 2 * TILE * max(1, -(-pairs // (2 * TILE * 256)))


def _serves_plan(ids, *, experts, block, rows, last) -> bool:
    return 0 < experts < EXPERTS and 0 not in ids.shape


#: moe_plan(ids int32 (T, K), experts, block, rows, last) -> order int32 (rows,), inverse int32 (T, K), offsets int32 (experts + 1,)
MOE_PLAN = KernelSpec("moe_plan", (COUNT, PLACE), lambda: ([[i * i % 5, i % 3] for i in range(301)],), registers=40, shared_bytes=8192,
                      serves=_serves_plan, static={"experts": 4, "block": 1, "rows": 602, "last": 4})

GATHER = Entry("moe_gather", (("x", "T"), ("order", "int32"), ("inverse", "int32")), ("y",),
               (("x", 0), ("x", 1), ("order", 0), ("inverse", 1)))

#: moe_gather(x (T, D), order int32 (R,), inverse int32 (T, K)) -> (R, D): the rows order // K of x, zero where that is none
MOE_GATHER = KernelSpec("moe_gather", (GATHER,), lambda: (sample_values(3, 37, seed=7), [5, 0, 6, 2, 1, 4, 3], [[0, 0]] * 3),
                        registers=32)
