"""The convolution inside `fftconv` on torch: long rows on a CPU in NumPy's blocks, which read and write torch's memory.

A whole-array transform allocates several times the input, and the operating system clears all of it first; that, and not
arithmetic, is what long rows take their time for. Blocks of a few rows, each in one thread, do without. torch plans a transform anew
at each call and shares each of them out over all threads, so that its blocks would have to be large; NumPy's need not. Short
rows, and GPUs, take the transform of the padded rows.

Conjugates are computed, never lazy: inside an operator of ours torch forgets to resolve the lazy ones.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from ember_ml.backend.numpy import fftconv as numpy
from ember_ml.backend.right_angle import smooth

#: lengths below this take the transform of padded rows
LONG = 4096


def _is_short(x) -> bool:
    return x.shape[-1] < LONG or x.device.type != "cpu"


# ---------------------------------------------------------------- long rows on a CPU
def _to_numpy(x):
    """The same memory; a prepared filter keeps its spectra, as torch's tensors."""
    if x is None:
        return None
    if isinstance(x, torch.Tensor):
        return x.detach().resolve_neg().numpy()
    reverse = None if x.k_reverse is None else SimpleNamespace(data=_to_numpy(x.k_reverse.data))

    def spectrum(key, make):
        return tuple(a.numpy() for a in x.spectrum(key, lambda: tuple(map(torch.from_numpy, make()))))
    return SimpleNamespace(k=SimpleNamespace(data=_to_numpy(x.k.data)), k_reverse=reverse, spectrum=spectrum)


# ---------------------------------------------------------------- short rows and GPUs
def _spectrum(k, k_reverse, x):
    """(size, real transform of the taps that x meets); kept where the filter is prepared."""
    length, work = x.shape[-1], x.dtype
    both = [None if f is None else f[:, :length] for f in numpy.filters_of(k, k_reverse)]
    size = 2 * smooth((length + max(f.shape[1] for f in both if f is not None)) // 2)

    def make():
        made = torch.fft.rfft(both[0].to(work), size)
        return (made if both[1] is None else made + torch.fft.rfft(both[1].to(work), size).conj_physical(),)

    with torch.no_grad():
        return size, (k.spectrum(("torch", size, length, work), make) if hasattr(k, "spectrum") else make())[0]


def _padded(x, kw, size):
    """The transform of padded rows, (B, H, C / H, F)."""
    return torch.fft.rfft(x, size).view(x.shape[0], kw.shape[0], x.shape[1] // kw.shape[0], -1)


def _unpadded(f, size, like):
    return torch.fft.irfft(f, size).view(*like.shape[:2], size)[..., :like.shape[-1]]


def _filter_grad(sums, k, size, x):
    """The taps of a sum over the batch of conj(X) G; taps beyond x's length never met it."""
    dk, met = torch.zeros(k.shape, dtype=x.dtype, device=x.device), min(k.shape[1], x.shape[-1])
    dk[:, :met] = torch.fft.irfft(sums, size)[:, :met]
    return dk


# ---------------------------------------------------------------- both
def _rows(x, k, D, k_reverse):
    if not _is_short(x):
        return torch.from_numpy(numpy.convolve_rows(*map(_to_numpy, (x, k, D, k_reverse))))
    size, kw = _spectrum(k, k_reverse, x)
    y = _unpadded(_padded(x, kw, size).mul_(kw.unsqueeze(1)), size, x)
    return y if D is None else torch.addcmul(y, x, D.unsqueeze(-1))


def _grad(g, x, k, D, k_reverse):
    if not _is_short(x):
        return [torch.from_numpy(a) for a in numpy.convolve_grad(*map(_to_numpy, (g, x, k, D, k_reverse)))]
    size, kw = _spectrum(k, k_reverse, x)
    wanted = not hasattr(k, "spectrum")
    g_f, x_f = _padded(g, kw, size), _padded(x, kw, size) if wanted else None
    sums = (x_f.conj_physical() * g_f).sum((0, 2)) if wanted else None
    dx = _unpadded(g_f.mul_(kw.conj_physical().unsqueeze(1)), size, x)
    found = [dx if D is None else torch.addcmul(dx, g, D.unsqueeze(-1))]
    if wanted:
        found.append(_filter_grad(sums, k, size, x))
    if D is not None:
        found.append(torch.einsum("bcl,bcl->c", g, x))
    if k_reverse is not None:
        found.append(_filter_grad(sums.conj_physical(), k_reverse, size, x))
    return found


@torch.library.custom_op("ember::convolve_rows", mutates_args=())
def _rows_op(x: torch.Tensor, k: torch.Tensor, D: torch.Tensor | None, k_reverse: torch.Tensor | None) -> torch.Tensor:
    return _rows(x, k, D, k_reverse).contiguous()


@_rows_op.register_fake
def _(x, k, D, k_reverse):
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


@torch.library.custom_op("ember::convolve_grad", mutates_args=())
def _grad_op(g: torch.Tensor, x: torch.Tensor, k: torch.Tensor, D: torch.Tensor | None,
             k_reverse: torch.Tensor | None) -> list[torch.Tensor]:
    return [t.contiguous() for t in _grad(g, x, k, D, k_reverse)]


@_grad_op.register_fake
def _(g, x, k, D, k_reverse):
    return [torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (x, k, D, k_reverse) if t is not None]


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _rows_grad(ctx, g):
    saved = ctx.saved_tensors                            # once: a checkpoint lets them go when they were read
    found = iter(_grad_op(g, *saved))
    return tuple(None if t is None else next(found) for t in saved)


_rows_op.register_autograd(_rows_grad, setup_context=_save)


def convolve_rows(x, k, D=None, k_reverse=None):
    if get_proxy_mode() is None:
        return _rows(x, k, D, k_reverse)
    return _rows_op(x, numpy.filters_of(k, k_reverse)[0], D, numpy.filters_of(k, k_reverse)[1])


def convolve_grad(g, x, k, D=None, k_reverse=None):
    if get_proxy_mode() is None:
        return tuple(_grad(g, x, k, D, k_reverse))
    found = iter(_grad_op(g, x, numpy.filters_of(k, k_reverse)[0], D, numpy.filters_of(k, k_reverse)[1]))
    found = [next(found) if t is not None else None for t in (x, k, D, k_reverse)]
    wanted = (True, not hasattr(k, "spectrum"), True, True)
    return tuple(t for t, keep in zip(found, wanted) if keep and t is not None)


TABLE = {"convolve_rows": convolve_rows, "convolve_grad": convolve_grad}
