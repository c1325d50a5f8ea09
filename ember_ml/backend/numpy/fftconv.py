"""`fftconv` on NumPy: the right-angle convolution in blocks of rows, in buffers that stay in the cache, with gates and gelu while they
are there.
"""

from __future__ import annotations

import math

import numpy as np

from ember_ml.backend.numpy.right_angle import Rows, back, edge_places, spectrum, transform, twisted, untwisted
from ember_ml.backend.numpy.special import erf


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
        self.rows = Rows(batch, heads * each * (each if self.many else 1), heads, self.how.points, self.kw.dtype)
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
