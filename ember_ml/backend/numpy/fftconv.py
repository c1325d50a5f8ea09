"""`fftconv` on NumPy by the right-angle convolution: blocks of rows in buffers that stay in the cache, with gates and gelu while they
are there, shared out over the cores.

Every transform here divides by M, once too often; the spectrum of the filter makes up for it. NumPy 2 takes a
transform without a scale for one in float64 and computes it there, in five times the time. The gradient needs correlations, whose
spectra are conjugates: the conjugate of a transformed row is the row, twisted and transformed the other way round.
"""

from __future__ import annotations

import math
import os
import sys
from functools import lru_cache
from threading import Thread

import numpy as np

from ember_ml.backend.numpy.special import erf
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
        rows = _Rows(1, both[0].shape[0], both[0].shape[0], how.points, kind)

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


class _Rows:
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


class _Call:
    """The arrays of one convolution, by head: (B, H, d1, d2, L) and (B, H, d, L), of which blocks are taken; its plan and its spectra.

    D has a number for each row. Large results are made by `empty`.
    """

    def __init__(self, u, k, D, v, q, k_reverse, mask, head_dim, empty):
        batch, channels, self.length = u.shape
        self.work, self.empty, self.many = u.dtype if u.dtype in (np.float32, np.float64) else np.dtype(np.float32), empty, head_dim > 1
        self.how, self.kw, self.mend = spectrum(k, k_reverse, self.work, self.length)
        heads = self.kw.shape[0]
        each = head_dim if self.many else channels // heads
        self.by_head = batch, heads, each, self.length
        self.u, self.D = u.reshape(*self.by_head[:3], 1, self.length), D
        self.v = None if v is None else v.reshape(*self.by_head[:2], 1, each, self.length)
        self.q = None if q is None else q.reshape(*self.by_head[:3], 1, self.length)
        self.mask = None if mask is None else mask[:, :, None, None, None].astype(self.work)
        self.rows = _Rows(batch, heads * each * (each if self.many else 1), heads, self.how.points, self.kw.dtype)
        self.shape = batch, channels

    def result(self, dtype):
        """An output and the same by head."""
        y = self.empty((*self.shape, self.length), dtype)
        return y, y.reshape(self.by_head)

    def real(self, buffer, at):
        """A buffer as real rows (B, C, L) and by head (B, H, d1, d2, L)."""
        b, h = at
        each = self.by_head[2]
        wide = b.stop - b.start, h.stop - h.start, each, each if self.many else 1, self.length
        flat = buffer.view(self.work)[:math.prod(wide)]
        return flat.reshape(wide[0], -1, self.length), flat.reshape(wide)

    def product(self, a, b, buffer, at):
        """a b as rows, or a itself where that will do."""
        if b is None and a.dtype == self.work and not self.many:
            return a.reshape(a.shape[0], -1, self.length)
        rows, wide = self.real(buffer, at)
        np.copyto(wide, a) if b is None else np.multiply(a, b, out=wide, dtype=self.work)
        return rows

    def skip(self, x, z, buffer, c):
        """z += D x, with the product in a buffer."""
        if self.D is not None:
            product = buffer.view(self.work)[:x.size].reshape(x.shape)
            z += np.multiply(x, self.D[c, None], out=product)

    def mended(self, x, z, at):
        """z with the products of the last of x that wrapped round into its first."""
        if self.mend is not None:
            left = self.how.left
            z[..., :left] += np.einsum("bca,can->bcn", x[..., self.length - left:], np.repeat(self.mend[at[1]], self.rows.each, axis=0))


def _phi(z):
    """The normal distribution of which gelu(z) = z Phi(z)."""
    return 0.5 * (1 + erf(z * z.dtype.type(math.sqrt(0.5))))


def _forward(u, k, D=None, v=None, q=None, k_reverse=None, mask=None, gelu=False, head_dim=1, empty=np.empty):
    call = _Call(u, k, D, v, q, k_reverse, mask, head_dim, empty)
    rows, (y, by_head) = call.rows, call.result(u.dtype)
    apart = call.many or u.dtype != call.work              # the rows are not yet what is returned

    def work(task, buffer, other=None, third=None):
        b, h = at = task
        c, (z, wide) = rows.part(h), rows.view(buffer, b, h)
        x = call.product(call.u[at], None if v is None else call.v[at], other, at)
        transform(twisted(x, z))
        wide *= call.kw[h, None]
        out = call.real(third, at)[0] if apart else by_head[at].reshape(x.shape)
        untwisted(back(z), out)
        call.skip(x, out, buffer, c)
        call.mended(x, out, at)
        if gelu:
            out *= _phi(out)
        a = out.reshape(*wide.shape[:2], call.by_head[2], -1, call.length)
        if mask is not None:
            a *= call.mask[at]
        if q is not None:
            np.multiply(a, call.q[at], out=a, dtype=call.work)
        if apart:
            by_head[at][...] = a.sum(axis=2) if call.many else a[:, :, :, 0]

    rows.run([block for task in rows.tasks for block in task], work, 3 if apart else 1 if v is None else 2)
    return y


def _backward(g, u, k, D=None, v=None, q=None, k_reverse=None, mask=None, gelu=False, head_dim=1, empty=np.empty):
    """Gradients in u, k, D, v, q and k_reverse, None where there is none; that in D for each row."""
    call = _Call(u, k, D, v, q, k_reverse, mask, head_dim, empty)
    rows, how, length, many, left = call.rows, call.how, call.length, call.many, call.how.left
    (du, du_by_head), dD = call.result(u.dtype), None if D is None else np.zeros(D.shape, call.work)
    (dv, dv_by_head), (dq, dq_by_head) = (call.result(u.dtype) if t is not None else (None, None) for t in (v, q))
    dk, dk_reverse = (None if f is None or hasattr(f, "spectrum") else empty(f.shape, call.work) for f in (k, k_reverse))
    edges = np.zeros((call.kw.shape[0], left, left), call.work) if left and dk is not None else None
    for taps in (dk, dk_reverse):
        if taps is not None:
            taps[:, length:] = 0.0                         # these never met the input
    g = g.reshape(*call.by_head[:2], *((1, head_dim) if many else (call.by_head[2], 1)), length)
    again = q is not None or gelu                          # the convolution's output is needed again

    def work(task, buffer, other, first, second, sums):
        for i, (b, h) in enumerate(task):                  # all of a filter in one thread, in one order: the same bits each time
            at, c, (z, wide), (x_f, x_f_wide) = (b, h), rows.part(h), rows.view(buffer, b, h), rows.view(other, b, h)
            x, dy, gate = call.product(call.u[at], None if v is None else call.v[at], first, at), g[at], None if q is None else call.q[at]
            dz, dz_wide = call.real(second, at)
            if again or dk is not None:
                transform(twisted(x, x_f))
            if again:
                np.multiply(x_f_wide, call.kw[h, None], out=wide)
                untwisted(back(z), dz)
                call.skip(x, dz, buffer, c)
                call.mended(x, dz, at)
                a = dz_wide
                if gelu:
                    phi = _phi(a)
                    slope = phi + a * np.exp(-0.5 * a * a) * a.dtype.type(1 / math.sqrt(2 * math.pi))
                    a *= phi
                if q is not None:
                    a = a if mask is None else a * call.mask[at]
                    if many:
                        dq_by_head[at][...] = (a * dy).sum(axis=3)
                    else:
                        np.multiply(a, dy, out=dq_by_head[at].reshape(a.shape), dtype=call.work, casting="unsafe")
            if again or mask is not None:
                np.copyto(dz_wide, dy) if gate is None else np.multiply(dy, gate, out=dz_wide, dtype=call.work)
                if gelu:
                    dz_wide *= slope
                if mask is not None:
                    dz_wide *= call.mask[at]
            else:
                dz = call.product(dy, None, second, at)
            back(twisted(dz, z, -1))                       # conj(G)
            if dk is not None:
                x_f *= z
                total = sums[:wide.shape[1] * how.points].reshape(-1, how.points)
                if i == 0:
                    np.sum(x_f_wide, axis=(0, 2), out=total)
                else:
                    total += x_f_wide.sum(axis=(0, 2))
                if left:
                    products = np.einsum("bca,bcn->can", x[..., length - left:], dz[..., :left])
                    edges[h] += products.reshape(-1, rows.each, left, left).sum(axis=1)
            wide *= call.kw[h, None]
            direct = v is None and u.dtype == call.work    # the rows are what is returned
            out = du_by_head[at].reshape(dz.shape) if direct else call.real(other, at)[0]
            untwisted(transform(z), out, -1)
            call.skip(dz, out, buffer, c)
            if D is not None:
                dD[c] += np.einsum("bcl,bcl->c", dz, x)
            if left:
                out[..., length - left:] += np.einsum("bcn,can->bca", dz[..., :left], np.repeat(call.mend[h], rows.each, axis=0))
            dx = out.reshape(dz_wide.shape)
            if many:
                du_by_head[at][...] = (dx * call.v[at]).sum(axis=3)
                dv_by_head[at][...] = (dx * call.u[at]).sum(axis=2)
            elif v is not None:
                for by_head, gate in ((du_by_head, call.v), (dv_by_head, call.u)):
                    np.multiply(dx, gate[at], out=by_head[at].reshape(dx.shape), dtype=call.work, casting="unsafe")
            elif not direct:
                du_by_head[at][...] = dx[:, :, :, 0]
        if dk is not None:
            total *= call.work.type(how.points) ** 2       # sum over the batch of X conj(G): the conjugate of k's correlation
            if dk_reverse is not None:
                copy = buffer[:total.size].reshape(total.shape)
                np.copyto(copy, total)
                untwisted(back(copy), dk_reverse[h, :length])
            untwisted(transform(total), dk[h, :length], -1)

    rows.run(rows.tasks, work, 5)
    if edges is not None:
        _mend_filter_grad(dk[:, :length], left, edges)
    return du, dk, dD, dv, dq, dk_reverse


def convolve_rows(x, k, D=None, k_reverse=None, empty=np.empty):
    """y = k * x + D x for x (B, C, L), filters (H, K) and D (C,); large results are made by `empty`."""
    return _forward(x, k, D, k_reverse=k_reverse, empty=empty)


def convolve_grad(g, x, k, D=None, k_reverse=None, empty=np.empty):
    """(dx, dk, dD, dk_reverse) of `convolve_rows` for its output's gradient g, without those whose argument is no array."""
    dx, dk, dD, _, _, dk_reverse = _backward(g, x, k, D, k_reverse=k_reverse, empty=empty)
    return tuple(found for found in (dx, dk, dD, dk_reverse) if found is not None)


def _per_row(D, head_dim):
    return None if D is None else np.repeat(D, head_dim * head_dim)


def fftconv_rows(u, k, D=None, v=None, q=None, k_reverse=None, dropout_mask=None, *, gelu=False, head_dim=1, empty=np.empty):
    """As `ember_ml.ops.fftconv` defines it, block by block with all that stands around the convolution."""
    return _forward(u, k, _per_row(D, head_dim), v, q, k_reverse, dropout_mask, gelu, head_dim, empty)


def fftconv_grad(g, u, k, D=None, v=None, q=None, k_reverse=None, dropout_mask=None, *, gelu=False, head_dim=1):
    du, dk, dD, dv, dq, dk_reverse = _backward(g, u, k, _per_row(D, head_dim), v, q, k_reverse, dropout_mask, gelu, head_dim)
    return du, dk, dD if dD is None else dD.reshape(len(D), -1).sum(axis=1), dv, dq, dk_reverse


def _mend_filter_grad(dk, left, edges):
    """Adds the products of the inputs' last and the gradients' first numbers, sums over rows, to the taps that they belong to."""
    places, there = edge_places(left)
    np.add.at(dk[:, dk.shape[1] - left:], (slice(None), places), edges * there)


TABLE = {"convolve_rows": convolve_rows, "convolve_grad": convolve_grad, "fftconv_rows": fftconv_rows, "fftconv_grad": fftconv_grad}
