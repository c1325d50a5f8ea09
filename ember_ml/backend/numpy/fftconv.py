"""The right-angle convolution on NumPy: blocks of rows in buffers that stay in the cache, shared out over the cores.

Every transform here divides by M, once too often; the spectrum of the filter makes up for it. NumPy 2 takes a
transform without a scale for one in float64 and computes it there, in five times the time.
"""

from __future__ import annotations

import os
from functools import lru_cache
from threading import Thread

import numpy as np

from ember_ml.backend.right_angle import blocks, plan

#: complex points of a block of rows, 512 KiB in complex64, which the second-level cache of a core holds; but no fewer rows than
#: two times what NumPy transforms side by side in one register
BLOCK, ROWS = 1 << 16, 8

#: points in all below which another thread costs more than it brings
ALONE = 1 << 16


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@lru_cache(maxsize=8)
def twist(points: int, dtype: str):
    """w^n for n = 0 ... M - 1, w = exp(i pi / 2M), computed in float64."""
    table = np.exp(np.arange(points) * (0.5j * np.pi / points)).astype(dtype)
    table.flags.writeable = False
    return table


def transform(x):
    """1/M sum_n x[n] exp(-2 pi i n f / M) along the last axis, in place."""
    return np.fft.fft(x, axis=-1, norm="forward", out=x)


def back(x):
    """1/M sum_f x[f] exp(2 pi i n f / M) along the last axis, in place."""
    return np.fft.ifft(x, axis=-1, out=x)


def twisted(x, w, out):
    """Rows of x times w^n, with what exceeds M points folded in as i x[n + M]; in `out`, whose last axis has M points."""
    length, points = x.shape[-1], w.shape[0]
    inside = min(length, points)
    np.multiply(x[..., :inside], w[:inside], out=out[..., :inside])
    out[..., inside:] = 0.0
    if length > points:
        out[..., :length - points] += x[..., points:] * (1j * w[:length - points])
    return out


def untwisted(z, w, out):
    """The real rows in `out` that z, transformed back (and overwritten), stands for: first Re(w^-n z[n]), then Im."""
    points, length = w.shape[0], out.shape[-1]
    z *= np.conj(w)
    out[..., :points] = z.real[..., :length]
    if length > points:
        out[..., points:] = z.imag[..., :length - points]
    return out


def edge_places(left: int):
    """(places (left, left), there): T[a, n] = taps[places[a, n]] where there, so that y[n] += sum_a x[L - left + a] T[a, n].

    taps are the last `left` ones. These are the products that wrapped round.
    """
    a, n = np.indices((left, left))
    return np.where(n <= a, n + left - 1 - a, 0), n <= a


def _edge(taps, left):
    places, there = edge_places(left)
    return taps[:, taps.shape[1] - left:][:, places] * there


def filters_of(k, k_reverse):
    """The native filters, of which a prepared one holds both."""
    return [None if f is None else f.data for f in (k.k, k.k_reverse)] if hasattr(k, "spectrum") else [k, k_reverse]


def spectrum(k, k_reverse, work, length):
    """(plan, M times the spectrum, edge or None) of the taps that an input of `length` meets; kept where the filter is prepared."""
    both = [None if f is None else f[:, :length] for f in filters_of(k, k_reverse)]
    how = plan(length, max(f.shape[1] for f in both if f is not None), both[1] is not None)
    kind = np.dtype(np.complex128 if work == np.float64 else np.complex64)

    def make():
        w, made = twist(how.points, kind.name), None
        for f in both:
            if f is not None:
                s = transform(twisted(f.astype(work), w, np.empty((f.shape[0], how.points), kind)))
                made = s if made is None else made + np.conj(s)
        made *= work.type(how.points) ** 2                 # the filter's own transform divided by M, too
        return (made, _edge(both[0].astype(work), how.left)) if how.left else (made,)

    made = k.spectrum(("right angle", how, length, kind.name), make) if hasattr(k, "spectrum") else make()
    return how, made[0], made[1] if how.left else None


class _Rows:
    """x (B, C, L) in blocks: some sequences of the batch, some filters with all their channels."""

    def __init__(self, x, heads: int, points: int, kind):
        batch, channels, _ = x.shape
        self.each, self.points, self.kind = channels // heads if heads else 1, points, kind
        self.tasks = blocks(batch, heads, -(-max(ROWS, BLOCK // points) // self.each))
        self.threads = 1 if x.shape[0] * channels * points < ALONE else cores()

    def part(self, h: slice) -> slice:
        """The channels of some filters."""
        return slice(h.start * self.each, h.stop * self.each)

    def view(self, buffer, b: slice, h: slice):
        """A buffer as (batch, channels, M), and the same with the channels of a filter on an axis of their own."""
        nb, nh = b.stop - b.start, h.stop - h.start
        z = buffer[:nb * nh * self.each * self.points].reshape(nb, nh * self.each, self.points)
        return z, z.reshape(nb, nh, self.each, self.points)

    def run(self, tasks, work, buffers: int):
        """work(task, *buffers) for all tasks, each of them a block or a list of blocks."""
        if not tasks:
            return
        b, h = self.tasks[0][0]
        room = (b.stop - b.start) * (h.stop - h.start) * self.each * self.points
        todo, faults = iter(tasks), []

        def worker():
            try:
                own = [np.empty(room, self.kind) for _ in range(buffers)]
                with np.errstate(all="ignore"):            # infinite input is no event: it stays in its row
                    for task in todo:
                        work(task, *own)
            except BaseException as e:                     # raised again in the caller's thread
                faults.append(e)

        threads = [Thread(target=worker) for _ in range(min(self.threads, len(tasks)) - 1)]
        for t in threads:
            t.start()
        worker()
        for t in threads:
            t.join()
        if faults:
            raise faults[0]


def convolve_rows(x, k, D=None, k_reverse=None):
    """y = k * x + D x for x (B, C, L), filters (H, K) and D (C,)."""
    y = np.empty(x.shape, x.dtype)
    how, kw, mend = spectrum(k, k_reverse, x.dtype, x.shape[-1])
    w, rows = twist(how.points, kw.dtype.name), _Rows(x, kw.shape[0], how.points, kw.dtype)

    def work(task, buffer):
        b, h = task
        c, (z, wide) = rows.part(h), rows.view(buffer, b, h)
        transform(twisted(x[b, c], w, z))
        wide *= kw[h, None]
        out = untwisted(back(z), w, y[b, c])
        if D is not None:
            out += x[b, c] * D[c, None]

    rows.run([block for task in rows.tasks for block in task], work, 1)
    if mend is not None:
        y[..., :how.left] += np.einsum("bca,can->bcn", x[..., x.shape[-1] - how.left:], np.repeat(mend, rows.each, axis=0))
    return y


def convolve_grad(g, x, k, D=None, k_reverse=None):
    """(dx, dk, dD, dk_reverse) of `convolve_rows` for its output's gradient g, without those whose argument is no array."""
    dx, dD = np.empty(x.shape, x.dtype), None if D is None else np.zeros(D.shape, D.dtype)
    how, kw, mend = spectrum(k, k_reverse, x.dtype, x.shape[-1])
    w, rows = twist(how.points, kw.dtype.name), _Rows(x, kw.shape[0], how.points, kw.dtype)
    sums = None if hasattr(k, "spectrum") else np.zeros(kw.shape, kw.dtype)

    def work(task, buffer, second=None):
        for b, h in task:                                  # all of a filter in one thread, in one order: the same bits each time
            c, (z, wide) = rows.part(h), rows.view(buffer, b, h)
            transform(twisted(g[b, c], w, z))
            if sums is not None:
                other, other_wide = rows.view(second, b, h)
                transform(twisted(x[b, c], w, other))
                np.conj(other, out=other)
                other *= z
                sums[h] += other_wide.sum(axis=(0, 2))
            wide *= np.conj(kw[h, None])
            out = untwisted(back(z), w, dx[b, c])
            if D is not None:
                out += g[b, c] * D[c, None]
                dD[c] += np.einsum("bcl,bcl->c", g[b, c], x[b, c])

    rows.run(rows.tasks, work, 1 if sums is None else 2)
    if mend is not None:
        dx[..., x.shape[-1] - how.left:] += np.einsum("bcn,can->bca", g[..., :how.left], np.repeat(mend, rows.each, axis=0))
    found = [dx, None, dD, None]
    if sums is not None:
        with np.errstate(all="ignore"):
            sums *= x.dtype.type(how.points) ** 2
            found[3] = None if k_reverse is None else _filter_grad(np.conj(sums), k_reverse, w, how, g, x)
            found[1] = _filter_grad(sums, k, w, how, g, x)
    return tuple(f for f in found if f is not None)


def _filter_grad(sums, k, w, how, g, x):
    dk, met = np.zeros(k.shape, x.dtype), min(k.shape[1], x.shape[-1])
    untwisted(back(sums), w, dk[:, :met])
    if how.left:
        places, there = edge_places(how.left)
        products = np.einsum("bca,bcn->can", x[..., x.shape[-1] - how.left:], g[..., :how.left])
        products = products.reshape(k.shape[0], -1, *products.shape[1:]).sum(axis=1) * there
        np.add.at(dk[:, met - how.left:met], (slice(None), places), products)
    return dk


TABLE = {"convolve_rows": convolve_rows, "convolve_grad": convolve_grad}
