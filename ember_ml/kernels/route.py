"""The kernels of a mixture's router (metal/route.metal, cuda/route.cu)."""

from __future__ import annotations

from ember_ml.kernels.spec import Entry, KernelSpec, sample_values

#: what stands for a logit that is not finite, here and in the kernels: its probability is 0, and it stays finite itself
NEVER = -1e30

TOPK = Entry("route_topk", (("x", "T"),), ("ids",), (("x", 0), ("x", 1)), numbers=("slots",))

#: moe_topk(x (..., E), k) -> int32 (..., k): indices by falling value, ties to the lower one
MOE_TOPK = KernelSpec("moe_topk", (TOPK,), lambda: ([[1.0, 3.0, 3.0, -2.0, 3.0] + [0.5 * i for i in range(40)], [0.0] * 45],),
                      registers=40, static={"k": 3})

_Z, _IDS = ("z", "float32"), ("ids", "int32")
CHOOSE = Entry("route_choose", (_Z, ("bias", "float32")), ("ids",), (("z", 0), ("z", 1)), numbers=("slots",))

#: moe_choose(z float32 (T, E), bias float32 (E,), k) -> int32 (T, k): the largest softmax(z) + bias
MOE_CHOOSE = KernelSpec("moe_choose", (CHOOSE,), lambda: (sample_values(5, 37, seed=8), sample_values(37, seed=9)), registers=40,
                        static={"k": 3})

_NUMBERS = ("normalize", "eps", "scale")
_HOW = {"normalize": True, "eps": 1e-20, "scale": 2.5}
WEIGH = Entry("route_weigh", (_Z, _IDS), ("weights", "scores"), (("z", 0), ("z", 1), ("ids", 1)), numbers=_NUMBERS)
WEIGH_GRAD = Entry("route_weigh_grad", (("g", "float32"), ("g_scores", "float32"), _IDS, ("scores", "float32")), ("d_z",),
                   (("g", 0), ("g", 1), ("scores", 1)), numbers=_NUMBERS)
_CHOSEN = [[3, 0, 36], [1, 2, 9], [8, 31, 32], [5, 4, 3], [0, 35, 34]]

#: moe_weigh(z, ids int32 (T, k), normalize, eps, scale) -> weights float32 (T, k), scores float32 (T, E)
MOE_WEIGH = KernelSpec("moe_weigh", (WEIGH,), lambda: (sample_values(5, 37, seed=8), _CHOSEN), registers=40, static=_HOW)

#: moe_weigh_grad(g (T, k), g_scores (T, E), ids, scores, the same) -> d_z float32 (T, E)
MOE_WEIGH_GRAD = KernelSpec(
    "moe_weigh_grad", (WEIGH_GRAD,),
    lambda: (sample_values(5, 3, seed=10), sample_values(5, 37, seed=11), _CHOSEN, sample_values(5, 37, seed=12)), registers=40,
    static=_HOW)
