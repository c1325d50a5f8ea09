"""The convolution inside `fftconv` on torch: transforms of padded rows, on a CPU in blocks that stay in the caches.

A whole-array transform allocates several times the input, and the operating system clears all of it first; that, and not
arithmetic, is what long rows take their time for. Blocks of rows in one buffer do without. They are padded to 2 M real
numbers, M and what wraps round from `right_angle.plan`: MKL transforms those in little more time than M complex
ones, and they need no twist. Where MKL is not, and on GPUs, torch.fft does the same in memory of its own.

Conjugates are computed, never lazy: inside an operator of ours torch forgets to resolve the lazy ones.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from ember_ml.backend.numpy.fftconv import edge_places, filters_of
from ember_ml.backend.right_angle import blocks, plan
from ember_ml.backend.torch.cpu import mkl

#: points of a block for each thread: 512 KiB in complex64, which the second-level cache of a core holds; points that
#: are not cut up at all; rows for each thread that are worth a call; rows that are worth one of torch.fft, which plans each time
BLOCK, SMALL, ROWS, PLANNED = 1 << 16, 1 << 15, 2, 64


class _Allocating:
    """torch.fft with the interface of `mkl.InPlace`."""

    def __init__(self, size: int, like):
        self.size, self.like, self.z = size, like, None

    def forward(self, x):
        self.z = torch.fft.rfft(x, self.size)
        return self.z

    def spectra(self, batch: int, channels: int):
        self.z = torch.empty(batch, channels, self.size // 2 + 1, dtype=self.like.dtype.to_complex(), device=self.like.device)
        return self.z

    def back(self, out):
        out.copy_(torch.fft.irfft(self.z, self.size, norm="forward")[..., :out.shape[2]])


def _has_mkl(x) -> bool:
    """Not for the tensors of tracing, which have shapes and no memory."""
    return x.device.type == "cpu" and type(x) in (torch.Tensor, torch.nn.Parameter) and mkl.works()


def _memory(rows: int, size: int, x):
    return mkl.InPlace(rows, size, x.dtype) if _has_mkl(x) else _Allocating(size, x)


def _tasks(x, heads: int, size: int):
    """(blocks of x, channels that a filter has, rows of a block at most)."""
    batch, channels, _ = x.shape
    rows, each = batch * channels, channels // heads
    if x.device.type == "cpu":
        threads, points = torch.get_num_threads(), size // 2
        fits = min(BLOCK * threads, max(rows * points // 2, SMALL)) // points
        rows = max(fits, ROWS * threads if _has_mkl(x) else PLANNED)
    tasks = blocks(batch, heads, -(-rows // each))
    b, h = tasks[0][0]
    return tasks, each, (b.stop - b.start) * (h.stop - h.start) * each


@lru_cache(maxsize=8)
def _edge_places(left: int, device: torch.device):
    return tuple(torch.from_numpy(a).to(device) for a in edge_places(left))


def _spectrum(k, k_reverse, x):
    """(plan, spectra / 2 M, edge or None) of the taps that x meets, (H, 1, M + 1); kept where the filter is prepared."""
    length, work = x.shape[-1], x.dtype
    both = [None if f is None else f[:, :length].to(work) for f in filters_of(k, k_reverse)]
    how = plan(length, max(f.shape[1] for f in both if f is not None), both[1] is not None)
    size = 2 * how.points

    def make():
        made, other = (None if f is None else _memory(f.shape[0], size, x).forward(f[None])[0].unsqueeze(1) for f in both)
        made = made / size if other is None else made.add_(other.conj_physical_()) / size
        if not how.left:
            return (made,)
        places, there = _edge_places(how.left, x.device)
        return made, both[0][:, both[0].shape[1] - how.left:][:, places] * there

    made = k.spectrum(("torch", how, length, work), make) if hasattr(k, "spectrum") else make()
    return how, made[0], made[1] if how.left else None


def _mend(y, x, mend):
    """Takes from the first of y what wrapped round from the last of x; for a gradient the other way, with mend transposed."""
    y -= torch.matmul(x.unflatten(1, (mend.shape[0], -1)), mend).flatten(1, 2)


@torch.no_grad()
def _rows(x, k, D, k_reverse):
    how, kw, mend = _spectrum(k, k_reverse, x)
    y, size = torch.empty(x.shape, dtype=x.dtype, device=x.device), 2 * how.points
    tasks, each, rows = _tasks(x, kw.shape[0], size)
    memory = _memory(rows, size, x)
    for task in tasks:
        for b, h in task:
            c = slice(h.start * each, h.stop * each)
            memory.forward(x[b, c]).unflatten(1, (-1, each)).mul_(kw[h])
            out = y[b, c]
            memory.back(out)
            if D is not None:
                out.addcmul_(x[b, c], D[c, None])
    if mend is not None:
        _mend(y[..., :how.left], x[..., x.shape[-1] - how.left:], mend)
    return y


@torch.no_grad()
def _grad(g, x, k, D, k_reverse):
    how, kw, mend = _spectrum(k, k_reverse, x)
    heads, size, new = kw.shape[0], 2 * how.points, {"dtype": x.dtype, "device": x.device}
    tasks, each, rows = _tasks(x, heads, size)
    dx, dD = torch.empty(x.shape, **new), None if D is None else torch.zeros(D.shape, **new)
    memory, wanted = _memory(rows, size, x), not hasattr(k, "spectrum")
    if wanted:
        other, totals = _memory(rows, size, x), _memory(heads, size, x)
        sums = totals.spectra(1, heads)
    for task in tasks:
        for i, (b, h) in enumerate(task):                  # in one order: the same bits each time
            c = slice(h.start * each, h.stop * each)
            g_f = memory.forward(g[b, c])
            if wanted:
                found = other.forward(x[b, c]).conj_physical_().mul_(g_f).unflatten(1, (-1, each)).sum((0, 2))
                sums[0, h] = found if i == 0 else found.add_(sums[0, h])
            g_f.unflatten(1, (-1, each)).mul_(kw[h].conj_physical())
            out = dx[b, c]
            memory.back(out)
            if D is not None:
                out.addcmul_(g[b, c], D[c, None])
                dD[c] += (g[b, c] * x[b, c]).sum((0, 2))
    dk = dk_reverse = None
    if wanted:
        if k_reverse is not None:
            reverse = _memory(heads, size, x)
            reverse.spectra(1, heads).copy_(sums).conj_physical_()
            dk_reverse = _filter_grad(reverse, k_reverse, x)
        dk = _filter_grad(totals, k, x)
    if mend is not None:
        tail, first = x[..., x.shape[-1] - how.left:], g[..., :how.left]
        _mend(dx[..., x.shape[-1] - how.left:], first, mend.mT)
        if wanted:
            places, there = _edge_places(how.left, x.device)
            products = torch.einsum("bhea,bhen->han", tail.unflatten(1, (heads, each)), first.unflatten(1, (heads, each))) * there
            met = min(k.shape[1], x.shape[-1])
            dk[:, met - how.left:met].index_add_(1, places.flatten(), products.flatten(1), alpha=-1)
    return [t for t in (dx, dk, dD, dk_reverse) if t is not None]


def _filter_grad(memory, k, x):
    """The taps of the sums in a memory; taps beyond x's length never met it."""
    dk = torch.zeros(k.shape, dtype=x.dtype, device=x.device)
    memory.back(dk[None, :, :x.shape[-1]])
    return dk.div_(memory.size)


@torch.library.custom_op("ember::convolve_rows", mutates_args=())
def _rows_op(x: torch.Tensor, k: torch.Tensor, D: torch.Tensor | None, k_reverse: torch.Tensor | None) -> torch.Tensor:
    return _rows(x, k, D, k_reverse)


@_rows_op.register_fake
def _(x, k, D, k_reverse):
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


@torch.library.custom_op("ember::convolve_grad", mutates_args=())
def _grad_op(g: torch.Tensor, x: torch.Tensor, k: torch.Tensor, D: torch.Tensor | None,
             k_reverse: torch.Tensor | None) -> list[torch.Tensor]:
    return _grad(g, x, k, D, k_reverse)


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
    return _rows_op(x, filters_of(k, k_reverse)[0], D, filters_of(k, k_reverse)[1])


def convolve_grad(g, x, k, D=None, k_reverse=None):
    if get_proxy_mode() is None:
        return tuple(_grad(g, x, k, D, k_reverse))
    found = iter(_grad_op(g, x, filters_of(k, k_reverse)[0], D, filters_of(k, k_reverse)[1]))
    found = [next(found) if t is not None else None for t in (x, k, D, k_reverse)]
    wanted = (True, not hasattr(k, "spectrum"), True, True)
    return tuple(t for t, keep in zip(found, wanted) if keep and t is not None)


TABLE = {"convolve_rows": convolve_rows, "convolve_grad": convolve_grad}
