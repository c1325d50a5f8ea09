"""The long convolution's kernels (metal/fftconv.metal, cuda/fftconv.cu): which of them serve a call, and what it gets back."""

from __future__ import annotations

from ember_ml.kernels import fftconv_plan as plans
from ember_ml.kernels import shortconv
from ember_ml.kernels.fftconv_launch import BACKWARD, FORWARD, backward, forward, spectrum
from ember_ml.kernels.gpu import Array, Gpu
from ember_ml.kernels.spec import KernelSpec, sample_values


def _filters(k, k_reverse) -> tuple:
    """Both filters; a prepared one holds them, as tensors."""
    return (k, k_reverse) if hasattr(k, "shape") else (k.k, k.k_reverse)


def _taps(u, k, k_reverse) -> tuple[int, int]:
    """The taps of each filter that rows of u meet."""
    return tuple(0 if f is None else min(u.shape[2], f.shape[1]) for f in _filters(k, k_reverse))


def _size(u, k, k_reverse, head_dim: int) -> tuple[int, bool]:
    """`transform_size` for the arguments of `fftconv`."""
    both_ways = _filters(k, k_reverse)[1] is not None
    return plans.transform_size(u.shape[2], max(_taps(u, k, k_reverse)), both_ways or head_dim > 1)


#: the widest window that costs less directly than by a transform in one pass: a tap costs two instructions a number (one product; a
#: quarter of a load, which takes four times as long), a transform 40 and 8 loads and stores
DIRECT = 32


def is_direct(u, k, k_reverse, dropout_mask, gelu: bool, head_dim: int) -> bool:
    """Whether `kernels.shortconv` computes the convolution tap by tap: where that is less work, and gates and a skip are all there is."""
    if dropout_mask is not None or gelu or head_dim > 1 or 0 in u.shape:
        return False
    taps = _taps(u, k, k_reverse)
    in_one_pass = plans.log_m(u.shape[2], max(taps)) <= plans.ONE_PASS[_language(u)]
    return shortconv.window(*taps) <= (DIRECT if in_one_pass else shortconv.LONGEST)


def _language(u) -> str:
    return "metal" if type(u).__module__.startswith("mlx") else "cuda"


def _met(u, k, k_reverse) -> tuple[Array, Array | None]:
    """Of both filters what u meets, as native arrays."""
    prepared, length = not hasattr(k, "shape"), u.shape[2]
    return tuple(None if f is None else (f.data if prepared else f)[:, :length] for f in _filters(k, k_reverse))


def _direct(gpu: Gpu, u, k, k_reverse) -> tuple[Array, Array | None]:
    return tuple(None if f is None else gpu.cast(f, "float32") for f in _met(u, k, k_reverse))


class _Transformed:
    """What forward and gradients by a transform have in common: plans, filters, and some heads at a time."""

    def __init__(self, gpu: Gpu, u, k, k_reverse, head_dim: int):
        size, tailed = _size(u, k, k_reverse, head_dim)
        self.gpu, self.batch, self.heads, self.pairs = gpu, u.shape[0], u.shape[1] // head_dim, head_dim ** 2
        self.plan, self.back = plans.cuda_plans(size) if gpu.language == "cuda" else (plans.metal_plan(size),) * 2
        taps, reverse = _met(u, k, k_reverse)
        self.filters = {"k": taps, "k_reverse": reverse}
        if not hasattr(k, "shape"):                        # its transform is made once for each plan and length
            key = gpu.language, self.plan.log_m, u.shape[2]
            self.filters = {"f": k.spectrum(key, lambda: (spectrum(gpu, self.plan, taps, reverse),))[0]}
        self.tail = taps if tailed else None

    def spectrum(self, f=None, k=None, k_reverse=None) -> Array:
        return spectrum(self.gpu, self.plan, k, k_reverse) if f is None else f

    def in_turns(self, compute, axes, spaces: int, apart: bool, D, mask, **rows) -> tuple:
        """`compute` of all arrays, or of those of some heads, as many as have so many workspaces of a long plan.

        apart: also some rows of a head, if these alone are too many: for what makes no sum over the batch.
        """
        some, few = self.heads, self.batch
        if isinstance(self.plan, plans.LongPlan):
            at_once = self.plan.together(self.pairs, spaces)
            some, few = max(1, at_once // self.batch), min(self.batch, at_once) if apart else self.batch
        return self.gpu.in_turns(compute, some, few, axes, rows, {"D": D, "tail": self.tail, **self.filters}, {"mask": mask})


def _fftconv(gpu: Gpu, u, k, D=None, v=None, q=None, k_reverse=None, dropout_mask=None, *, gelu=False, head_dim=1) -> Array:
    """u, v and q may be slices of one array. Taps beyond the length have no effect. A prepared filter keeps its spectrum."""
    if is_direct(u, k, k_reverse, dropout_mask, gelu, head_dim):
        return shortconv.forward(gpu, u, *_direct(gpu, u, k, k_reverse), v=v, q=q, skip=D)
    by = _Transformed(gpu, u, k, k_reverse, head_dim)

    def compute(u, D, v, q, mask, tail, **filters):
        return forward(gpu, by.plan, u, by.spectrum(**filters), D, v, q, mask, gelu, tail, head_dim),

    return by.in_turns(compute, (1,), 3, True, D, dropout_mask, u=u, v=v, q=q)[0]


def _fftconv_grad(gpu: Gpu, g, u, k, D=None, v=None, q=None, k_reverse=None, dropout_mask=None, *, gelu=False, head_dim=1) -> tuple:
    prepared = not hasattr(k, "shape")                     # no gradient flows into it
    if is_direct(u, k, k_reverse, dropout_mask, gelu, head_dim):
        du, dv, dq, dk, dk_reverse, dD, _ = shortconv.backward(gpu, g, u, *_direct(gpu, u, k, k_reverse), v=v, q=q, skip=D)
    else:
        by, (taps, taps_reverse) = _Transformed(gpu, u, k, k_reverse, head_dim), (0, 0) if prepared else _taps(u, k, k_reverse)
        if prepared and D is not None:
            taps = 1                                       # the skip is one more tap at lag 0

        def compute(g, u, D, v, q, mask, tail, **filters):
            return backward(gpu, by.back, g, u, by.spectrum(**filters), taps, taps_reverse, D, v, q, mask, gelu, tail, head_dim)

        du, dv, dq, dk, dk_reverse = by.in_turns(compute, (1, 1, 1, 0, 0), 4, False, D, dropout_mask, g=gpu.cast(g, gpu.dtype(u)),
                                                 u=u, v=v, q=q)
        dD = None if D is None else gpu.copy(dk[:, 0])
    if prepared:
        return du, None, dD, dv, dq, None
    widened = (None if f is None else d if d.shape == f.shape else gpu.widened(d, f.shape[1]) for d, f in ((dk, k), (dk_reverse, k_reverse)))
    dk, dk_reverse = widened                               # taps that met nothing get zeros
    return du, dk, dD, dv, dq, dk_reverse


def _serves(u, k, D=None, v=None, q=None, k_reverse=None, dropout_mask=None, *, gelu=False, head_dim=1) -> bool:
    """Something to do, few taps or a transform that is not too long, and gates of u's dtype: the kernels read them as that."""
    if 0 in u.shape or any(gate is not None and gate.dtype != u.dtype for gate in (v, q)):
        return False
    return is_direct(u, k, k_reverse, dropout_mask, gelu, head_dim) or _size(u, k, k_reverse, head_dim)[0] <= plans.LONGEST


def _serves_grad(_g, *arguments, **static) -> bool:
    return _serves(*arguments, **static)


def _sample() -> tuple[list, ...]:
    """Everything that a call may have, for rows that fill no transform."""
    rows, filters = (2, 3, 37), (3, 37)
    return (sample_values(*rows, seed=1), sample_values(*filters, seed=2), sample_values(3, seed=3), sample_values(*rows, seed=4),
            sample_values(*rows, seed=5), sample_values(*filters, seed=6), sample_values(2, 3, seed=7))


#: what it is, channels a head, heads, length, taps: calls of kernels that the sample does not reach
_MORE = (("two channels a head", 2, 2, 50, 50), ("2^6 + 2 numbers", 1, 2, 66, 66), ("the most points in one pass", 1, 1, 16300, 80),
         ("three passes", 1, 1, 40000, 80))


def _more() -> list[tuple[str, tuple[list, ...], dict]]:
    found = []
    for what, head_dim, heads, length, taps in _MORE:
        u, v, q = (sample_values(heads, heads * head_dim, length, seed=seed) for seed in (1, 4, 5))
        found.append((what, (u, sample_values(heads, taps, seed=2), None, v, q, None, None), {"head_dim": head_dim}))
    return found


def _more_grad() -> list[tuple[str, tuple[list, ...], dict]]:
    return [(what, (sample_values(len(given[0]), len(given[0][0]), len(given[0][0][0]), seed=8), *given), static)
            for what, given, static in _more()]


_TAKES = (("u", "T"), ("k", "float32"), ("D", "float32"), ("v", "T"), ("q", "T"), ("k_reverse", "float32"), ("dropout_mask", "float32"))

#: fftconv(u, k, D, v, q, k_reverse, dropout_mask, gelu, head_dim) -> y, as `ember_ml.ops.fftconv` has it
FFTCONV = KernelSpec("fftconv", (FORWARD,), _fftconv, _sample, registers=128, serves=_serves, more=_more, takes=_TAKES)

#: fftconv_grad(g, and the same) -> gradients in u, k, D, v, q and k_reverse, None for what is not there. Those in u, v and q
#: have u's dtype, the others are float32.
FFTCONV_GRAD = KernelSpec("fftconv_grad", (BACKWARD,), _fftconv_grad, lambda: (sample_values(2, 3, 37, seed=8), *_sample()), registers=168,
                          serves=_serves_grad, more=_more_grad, takes=(("g", "T"), *_TAKES))
