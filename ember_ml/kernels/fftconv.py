"""The long convolution's kernels (metal/fftconv.metal, cuda/fftconv.cu): which of them serve a call, and what it gets back."""

from __future__ import annotations

from ember_ml.kernels import fftconv_plan as plans
from ember_ml.kernels import shortconv
from ember_ml.kernels.fftconv_form import FORMS, filters, form, form_grad, is_direct, met_taps, sample, sample_grad, size
from ember_ml.kernels.fftconv_launch import BACKWARD, FORWARD, backward, forward, spectrum
from ember_ml.kernels.gpu import Array, Gpu
from ember_ml.kernels.spec import KernelSpec


def _met(u, k, k_reverse) -> tuple[Array, Array | None]:
    """Of both filters what u meets, as native arrays."""
    prepared, length = not hasattr(k, "shape"), u.shape[2]
    return tuple(None if f is None else (f.data if prepared else f)[:, :length] for f in filters(k, k_reverse))


def _direct(gpu: Gpu, u, k, k_reverse) -> tuple[Array, Array | None]:
    return tuple(None if f is None else gpu.cast(f, "float32") for f in _met(u, k, k_reverse))


class _Transformed:
    """What forward and gradients by a transform have in common: plans, filters, and some heads at a time."""

    def __init__(self, gpu: Gpu, u, k, k_reverse, head_dim: int):
        log_m, tailed = size(u, k, k_reverse, head_dim)
        self.gpu, self.batch, self.heads, self.pairs = gpu, u.shape[0], u.shape[1] // head_dim, head_dim ** 2
        self.plan, self.back = plans.cuda_plans(log_m) if gpu.language == "cuda" else (plans.metal_plan(log_m),) * 2
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
        by, (taps, taps_reverse) = _Transformed(gpu, u, k, k_reverse, head_dim), (0, 0) if prepared else met_taps(u, k, k_reverse)
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


_TAKES = (("u", "T"), ("k", "float32"), ("D", "float32"), ("v", "T"), ("q", "T"), ("k_reverse", "float32"), ("dropout_mask", "float32"))

#: fftconv(u, k, D, v, q, k_reverse, dropout_mask, gelu, head_dim) -> y, as `ember_ml.ops.fftconv` has it
FFTCONV = KernelSpec("fftconv", (FORWARD,), _fftconv, sample, registers=128, form=form, forms=FORMS, takes=_TAKES)

#: fftconv_grad(g, and the same) -> gradients in u, k, D, v, q and k_reverse, None for what is not there. Those in u, v and q
#: have u's dtype, the others are float32.
FFTCONV_GRAD = KernelSpec("fftconv_grad", (BACKWARD,), _fftconv_grad, sample_grad, registers=168, form=form_grad, forms=FORMS,
                          takes=(("g", "T"), *_TAKES))
