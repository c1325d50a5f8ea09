"""Right-angle convolution on NumPy: twisted rows and their transforms, the spectra of filters, blocks of rows shared out over the cores.

Every transform here divides by M, once too often; the spectrum of the filter makes up for it. NumPy 2 takes a
transform without a scale for one in float64 and computes it there, in five times the time. The gradient needs correlations, whose
spectra are conjugates: the conjugate of a transformed row is the row, twisted and transformed the other way round.
"""

from __future__ import annotations

import os
import sys
from functools import lru_cache
from threading import Thread

import numpy as np

from ember_ml.backend.right_angle import blocks, plan

#: complex points of a block of rows, 512 KiB in complex64, which the second-level cache of a core holds; but no fewer rows than
#: two times what NumPy transforms side by side in one register
BLOCK, ROWS = 1 << 16, 8

#: points in all below which another thread costs more than it brings; blocks that each thread has at least
ALONE, EACH = 1 << 16, 2


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@lru_cache(maxsize=16)
def twist(points: int, dtype: str, sign: int = 1):
    """w^n for n = 0 ... M - 1, w = exp(i pi / 2M), computed in float64; with sign -1 their conjugates."""
    table = np.exp(np.arange(points) * (0.5j * sign * np.pi / points)).astype(dtype)
    table.flags.writeable = False
    return table


def transform(x):
    """1/M sum_n x[n] exp(-2 pi i n f / M) along the last axis, in place."""
    return np.fft.fft(x, axis=-1, norm="forward", out=x)


def back(x):
    """1/M sum_f x[f] exp(2 pi i n f / M) along the last axis, in place."""
    return np.fft.ifft(x, axis=-1, out=x)


def twisted(x, out, sign=1):
    """Rows of x times w^n, with what exceeds M points folded in as i x[n + M]; in `out`, whose last axis has M points."""
    length, points = x.shape[-1], out.shape[-1]
    inside = min(length, points)
    z = out[..., :inside]
    np.copyto(z, x[..., :inside])                          # as complex numbers first: NumPy is slow at real times complex
    if length > points:
        np.multiply(x[..., points:], sign, out=out.imag[..., :length - points])
    z *= twist(points, out.dtype.name, sign)[:inside]
    out[..., inside:] = 0.0
    return out


def untwisted(z, out, sign=1):
    """The real rows in `out` that z, transformed back (and overwritten), stands for: first Re(w^-n z[n]), then Im."""
    points, length = z.shape[-1], out.shape[-1]
    z = z[..., :length]
    z *= twist(points, z.dtype.name, -sign)[:length]
    if z.dtype == np.complex64 and sys.byteorder == "little":   # the low halves of 64 bits: found faster than every other float
        np.copyto(out[..., :points].view(np.int32), z.view(np.int64), casting="unsafe")
    else:
        out[..., :points] = z.real
    if length > points:
        np.multiply(z.imag[..., :length - points], sign, out=out[..., points:])
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
    both = [None if f is None else f[:, :length].astype(work, copy=False) for f in filters_of(k, k_reverse)]
    how = plan(length, max(f.shape[1] for f in both if f is not None), both[1] is not None)
    kind = np.dtype(np.complex128 if work == np.float64 else np.complex64)

    def make():
        made = np.empty((both[0].shape[0], how.points), kind)
        rows = Rows(1, both[0].shape[0], both[0].shape[0], how.points, kind)

        def one(task, buffer):
            (b, h), = task
            z, _ = rows.view(buffer, b, h)
            made[h] = transform(twisted(both[0][None, h], z))[0]
            if both[1] is not None:                        # of the future: the conjugate
                made[h] += back(twisted(both[1][None, h], z, -1))[0]
            made[h] *= work.type(how.points) ** 2          # the filter's own transform divided by M, too

        rows.run(rows.tasks, one, 1)
        return (made, _edge(both[0], how.left)) if how.left else (made,)

    made = k.spectrum(("right angle", how, length, kind.name), make) if hasattr(k, "spectrum") else make()
    return how, made[0], made[1] if how.left else None


class Rows:
    """(batch, channels) rows of M points in blocks: some sequences of the batch, some filters with all their channels."""

    def __init__(self, batch: int, channels: int, heads: int, points: int, kind):
        self.each, self.points, self.kind = channels // heads if heads else 1, points, kind
        total = batch * channels * points
        self.threads = 1 if total < ALONE else cores()
        fits = min(BLOCK, total // (EACH * self.threads)) if self.threads > 1 else BLOCK
        self.tasks = blocks(batch, heads, -(-max(ROWS, fits // points) // self.each))

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
