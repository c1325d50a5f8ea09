"""The right-angle convolution on torch's CPU side: blocks of rows in one buffer that is used again and again.

A whole-array transform allocates several times the input, and the operating system clears all of it first; that, and not
arithmetic, is what long rows take their time for. Short rows, and GPUs, take the transform of the padded rows.

Conjugates are computed, never lazy: inside an operator of ours torch forgets to resolve the lazy ones.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from ember_ml.backend.numpy.fftconv import edge_places, filters_of, twist
from ember_ml.backend.right_angle import blocks, plan, smooth

#: complex points of a block of rows, 4 MiB in complex64. Each call of torch plans its transform anew, which 32 rows pay for: blocks
#: of longer rows are up to four times as large, as long as the allocator keeps the memory of one call for the next
BLOCK = 1 << 19

#: lengths below this take the transform of padded rows
LONG = 4096


def _kind(dtype):
    return torch.complex128 if dtype is torch.float64 else torch.complex64


@lru_cache(maxsize=8)
def _twist(points, kind):
    return torch.from_numpy(twist(points, str(kind).removeprefix("torch.")).copy())


def _is_short(x) -> bool:
    return x.shape[-1] < LONG or x.device.type != "cpu"


def _twisted(x, w, out):
    """As in NumPy's: rows times w^n, what exceeds M points folded in as i x[n + M]."""
    length, points = x.shape[-1], w.shape[0]
    inside = min(length, points)
    torch.mul(x[..., :inside], w[:inside], out=out[..., :inside])
    out[..., inside:].zero_()
    if length > points:
        out[..., :length - points] += x[..., points:] * (1j * w[:length - points])
    return out


def _untwisted(z, w, out):
    """As in NumPy's: first Re(w^-n z[n]), then its imaginary part."""
    points, length = w.shape[0], out.shape[-1]
    z *= w.conj_physical()
    real = torch.view_as_real(z)
    out[..., :points] = real[..., :min(length, points), 0]
    if length > points:
        out[..., points:] = real[..., :length - points, 1]
    return out


def _spectrum(k, k_reverse, x):
    """What a convolution with x needs of the filters: (plan or None, size, spectrum, edge or None); kept where prepared.

    Without a plan it is the spectrum of padded rows.
    """
    length, work = x.shape[-1], x.dtype
    both = [None if f is None else f[:, :length] for f in filters_of(k, k_reverse)]
    taps = max(f.shape[1] for f in both if f is not None)
    how = None if _is_short(x) else plan(length, taps, both[1] is not None)
    size = 2 * smooth((length + taps) // 2) if how is None else how.points

    def make():
        made = None
        for f in both:
            if f is None:
                continue
            if how is None:
                s = torch.fft.rfft(f.to(work), size)
            else:
                kind = _kind(work)
                s = _twisted(f.to(work), _twist(size, kind), torch.empty((f.shape[0], size), dtype=kind))
                s = torch.fft.fft(s, norm="forward", out=s)
            made = s if made is None else made + s.conj_physical()
        if how is None or not how.left:
            return (made,)
        places, there = (torch.from_numpy(a) for a in edge_places(how.left))
        return made, both[0].to(work)[:, taps - how.left:][:, places] * there

    with torch.no_grad():
        made = k.spectrum(("torch", how, size, length, work), make) if hasattr(k, "spectrum") else make()
    return how, size, made[0], made[1] if how is not None and how.left else None


class _Blocks:
    """The blocks of a convolution of long rows: views of one buffer, and the parts of x and of the filters that they take."""

    def __init__(self, x, kw):
        self.each, self.points = x.shape[1] // kw.shape[0], kw.shape[1]
        room = min(max(BLOCK, 32 * self.points), 4 * BLOCK)
        self.tasks = blocks(x.shape[0], kw.shape[0], max(1, room // (self.points * self.each)))

    def buffer(self, like):
        b, h = self.tasks[0][0]
        return torch.empty((b.stop - b.start) * (h.stop - h.start) * self.each * self.points, dtype=like.dtype)

    def channels(self, h):
        return slice(h.start * self.each, h.stop * self.each)

    def view(self, buffer, b, h):
        """(batch, channels, M), and the same with the channels of a filter on an axis of their own."""
        nb, nh = b.stop - b.start, h.stop - h.start
        z = buffer[:nb * nh * self.each * self.points].view(nb, nh * self.each, self.points)
        return z, z.view(nb, nh, self.each, self.points)


def _padded(x, kw, size):
    """The transform of padded rows, (B, H, C / H, F)."""
    return torch.fft.rfft(x, size).view(x.shape[0], kw.shape[0], x.shape[1] // kw.shape[0], -1)


def _unpadded(f, size, like):
    return torch.fft.irfft(f, size).view(*like.shape[:2], size)[..., :like.shape[-1]]


def _rows(x, k, D, k_reverse):
    how, size, kw, mend = _spectrum(k, k_reverse, x)
    if how is None:
        y = _unpadded(_padded(x, kw, size).mul_(kw.unsqueeze(1)), size, x)
        return y if D is None else torch.addcmul(y, x, D.unsqueeze(-1))
    y, w, cut = torch.empty(x.shape, dtype=x.dtype), _twist(size, kw.dtype), _Blocks(x, kw)
    buffer = cut.buffer(kw)
    for b, h in (block for task in cut.tasks for block in task):
        c, (z, wide) = cut.channels(h), cut.view(buffer, b, h)
        torch.fft.fft(_twisted(x[b, c], w, z), out=z)
        wide.mul_(kw[h].unsqueeze(1))
        out = _untwisted(torch.fft.ifft(z, norm="forward", out=z), w, y[b, c])
        if D is not None:
            out.addcmul_(x[b, c], D[c].unsqueeze(-1))
    if mend is not None:
        y[..., :how.left] += torch.einsum("bca,can->bcn", x[..., -how.left:], mend.repeat_interleave(cut.each, 0))
    return y


def _filter_grad(sums, k, how, size, g, x):
    """The taps of a sum over the batch of conj(X) G; taps beyond x's length never met it."""
    dk, met = torch.zeros(k.shape, dtype=x.dtype, device=x.device), min(k.shape[1], x.shape[-1])
    if how is None:
        dk[:, :met] = torch.fft.irfft(sums, size)[:, :met]
        return dk
    _untwisted(torch.fft.ifft(sums), _twist(size, sums.dtype), dk[:, :met])
    if how.left:
        places, there = (torch.from_numpy(a) for a in edge_places(how.left))
        products = torch.einsum("bca,bcn->can", x[..., -how.left:], g[..., :how.left])
        products = products.reshape(k.shape[0], -1, how.left ** 2).sum(1) * there.reshape(-1)
        dk[:, met - how.left:met].index_add_(1, places.reshape(-1), products)
    return dk


def _grad(g, x, k, D, k_reverse):
    how, size, kw, mend = _spectrum(k, k_reverse, x)
    wanted = not hasattr(k, "spectrum")
    if how is None:
        g_f, x_f = _padded(g, kw, size), _padded(x, kw, size) if wanted else None
        sums = (x_f.conj_physical() * g_f).sum((0, 2)) if wanted else None
        dx = _unpadded(g_f.mul_(kw.conj_physical().unsqueeze(1)), size, x)
        dx = dx if D is None else torch.addcmul(dx, g, D.unsqueeze(-1))
    else:
        dx, w, cut = torch.empty(x.shape, dtype=x.dtype), _twist(size, kw.dtype), _Blocks(x, kw)
        buffer, second = cut.buffer(kw), cut.buffer(kw) if wanted else None
        sums = torch.zeros_like(kw) if wanted else None
        for b, h in (block for task in cut.tasks for block in task):
            c, (z, wide) = cut.channels(h), cut.view(buffer, b, h)
            torch.fft.fft(_twisted(g[b, c], w, z), out=z)
            if wanted:
                other, other_wide = cut.view(second, b, h)
                torch.fft.fft(_twisted(x[b, c], w, other), out=other)
                sums[h] += torch.mul(other.conj_physical_(), z, out=other).view(other_wide.shape).sum((0, 2))
            wide.mul_(kw[h].conj_physical().unsqueeze(1))
            out = _untwisted(torch.fft.ifft(z, norm="forward", out=z), w, dx[b, c])
            if D is not None:
                out.addcmul_(g[b, c], D[c].unsqueeze(-1))
        if mend is not None:
            dx[..., -how.left:] += torch.einsum("bcn,can->bca", g[..., :how.left], mend.repeat_interleave(cut.each, 0))
    found = [dx]
    if wanted:
        found.append(_filter_grad(sums, k, how, size, g, x))
    if D is not None:
        found.append(torch.einsum("bcl,bcl->c", g, x))
    if k_reverse is not None:
        found.append(_filter_grad(sums.conj_physical(), k_reverse, how, size, g, x))
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
    return _rows_op(x, filters_of(k, k_reverse)[0], D, filters_of(k, k_reverse)[1])


def convolve_grad(g, x, k, D=None, k_reverse=None):
    if get_proxy_mode() is None:
        return tuple(_grad(g, x, k, D, k_reverse))
    found = iter(_grad_op(g, x, filters_of(k, k_reverse)[0], D, filters_of(k, k_reverse)[1]))
    found = [next(found) if t is not None else None for t in (x, k, D, k_reverse)]
    wanted = (True, not hasattr(k, "spectrum"), True, True)
    return tuple(t for t, keep in zip(found, wanted) if keep and t is not None)


TABLE = {"convolve_rows": convolve_rows, "convolve_grad": convolve_grad}
