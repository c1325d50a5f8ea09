"""The kernels of a mixture's router (metal/route.metal, cuda/route.cu), and how they are launched."""

from __future__ import annotations

from math import prod

from ember_ml.kernels.gpu import Array, Gpu, simdgroups
from ember_ml.kernels.spec import Entry, KernelSpec, Sample, sample_values

#: what stands for a logit that is not finite, here and in the kernels: its probability is 0, and it stays finite itself
NEVER = -1e30

TOPK = Entry("route_topk", (("x", "T"),), ("ids",), (("x", 0), ("x", 1)), numbers=("slots",))


def _topk(gpu: Gpu, x: Array, k: int = 2) -> Array:
    """NaN and minus infinity count as the least finite number."""
    count, shape = prod(x.shape[:-1]), (*x.shape[:-1], k)
    if 0 in (*x.shape, k):
        return gpu.zeros(shape, "int32", x)
    return gpu.launch(TOPK, [x.reshape(count, -1)], [((count, k), "int32")], simdgroups(count), (k,))[0].reshape(shape)


#: moe_topk(x (..., E), k) -> int32 (..., k): indices by falling value, ties to the lower one
MOE_TOPK = KernelSpec("moe_topk", (TOPK,), _topk, lambda _: Sample(([[1.0, 3.0, 3.0, -2.0, 3.0] + [0.5 * i for i in range(40)], [0.0] * 45],),
                                                            {"k": 3}), registers=40)

_Z, _IDS = ("z", "float32"), ("ids", "int32")
CHOOSE = Entry("route_choose", (_Z, ("bias", "float32")), ("ids",), (("z", 0), ("z", 1)), numbers=("slots",))


def _choose(gpu: Gpu, z: Array, bias: Array, *, k: int) -> Array:
    shape = (z.shape[0], k)
    if 0 in shape:
        return gpu.zeros(shape, "int32", z)
    return gpu.launch(CHOOSE, [z, bias], [(shape, "int32")], simdgroups(z.shape[0]), (k,))[0]


#: moe_choose(z float32 (T, E), bias float32 (E,), k) -> int32 (T, k): the largest softmax(z) + bias
MOE_CHOOSE = KernelSpec("moe_choose", (CHOOSE,), _choose, lambda _: Sample((sample_values(5, 37, seed=8), sample_values(37, seed=9)), {"k": 3}),
                        registers=40)

_NUMBERS = ("normalize", "eps", "scale")
_HOW = {"normalize": True, "eps": 1e-20, "scale": 2.5}
WEIGH = Entry("route_weigh", (_Z, _IDS), ("weights", "scores"), (("z", 0), ("z", 1), ("ids", 1)), numbers=_NUMBERS)
WEIGH_GRAD = Entry("route_weigh_grad", (("g", "float32"), ("g_scores", "float32"), _IDS, ("scores", "float32")), ("d_z",),
                   (("g", 0), ("g", 1), ("scores", 1)), numbers=_NUMBERS)
_CHOSEN = [[3, 0, 36], [1, 2, 9], [8, 31, 32], [5, 4, 3], [0, 35, 34]]


def _weigh(gpu: Gpu, z: Array, ids: Array, *, normalize: bool, eps: float, scale: float) -> tuple[Array, Array]:
    outputs = [(ids.shape, "float32"), (z.shape, "float32")]
    if 0 in (*z.shape, *ids.shape):
        return tuple(gpu.zeros(*output, z) for output in outputs)
    return gpu.launch(WEIGH, [z, ids], outputs, simdgroups(z.shape[0]), (int(normalize), float(eps), float(scale)))


def _weigh_grad(gpu: Gpu, g: Array, g_scores: Array, ids: Array, scores: Array, *, normalize: bool, eps: float, scale: float) -> Array:
    if 0 in (*scores.shape, *ids.shape):
        return gpu.zeros(scores.shape, "float32", g)
    return gpu.launch(WEIGH_GRAD, [g, g_scores, ids, scores], [(scores.shape, "float32")], simdgroups(g.shape[0]),
                      (int(normalize), float(eps), float(scale)))[0]


#: moe_weigh(z, ids int32 (T, k), normalize, eps, scale) -> weights float32 (T, k), scores float32 (T, E)
MOE_WEIGH = KernelSpec("moe_weigh", (WEIGH,), _weigh, lambda _: Sample((sample_values(5, 37, seed=8), _CHOSEN), _HOW), registers=40)

#: moe_weigh_grad(g (T, k), g_scores (T, E), ids, scores, the same) -> d_z float32 (T, E)
MOE_WEIGH_GRAD = KernelSpec(
    "moe_weigh_grad", (WEIGH_GRAD,), _weigh_grad,
    lambda _: Sample((sample_values(5, 3, seed=10), sample_values(5, 37, seed=11), _CHOSEN, sample_values(5, 37, seed=12)), _HOW),
    registers=40)
