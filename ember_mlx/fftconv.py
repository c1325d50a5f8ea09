"""The right-angle convolution on MLX, where no kernel of ours runs: NumPy's blocks of rows on MLX's own memory, or a graph.

The blocks are for a CPU and wait for their input. Few numbers are not worth that, and a compiled step has no values yet: these take
the graph, one compiled expression around two complex transforms. A transform of L complex points in place of a real one of 2 L
spares the padding, and lengths of 2^j + 2 stay a power of two, where MLX would take a transform of another kind that is many times
slower. Compiled, because MLX multiplies complex numbers eight times faster inside a compiled expression on a CPU. There a stream
computes on one core, so that several share the heads.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import lru_cache
from types import SimpleNamespace

import mlx.core as mx

from ember_ml.backend.numpy import fftconv as blocks
from ember_ml.backend.numpy.right_angle import cores, edge_places, filters_of, twist
from ember_ml.backend.right_angle import plan
from ember_mlx.host import from_numpy
from ember_mlx.lent import Results, at_hand, view

#: numbers below which compiling an expression for their shape takes longer than it saves, and below which one core is enough
SMALL, ALONE = 1 << 15, 1 << 16

#: numbers from which there are more parts than cores, and how many
MANY, PARTS = 1 << 18, 32

#: numbers from which blocks are as fast as the graph: beyond, up to two times as fast, gradients up to four times
WORTH = {"fftconv_rows": 1 << 18, "convolve_rows": 1 << 18, "convolve_grad": 1 << 12}


@lru_cache(maxsize=1)
def _streams() -> list:
    """Streams for the cores beside the first, which has the default stream."""
    new = getattr(mx, "new_thread_local_stream", mx.new_stream)
    return [new(mx.cpu) for _ in range(cores() - 1)]


def _shared(fn, joins):
    """`fn(rows of all channels, skip or None, spectrum, table)`, compiled, with parts of the heads on several cores.

    A part is written into the whole as soon as it is there: MLX makes some ten arrays ahead of what is computed, so that many parts
    need little memory, and find their numbers in the caches.

    Args:
        joins: the axes along which the outputs of the parts are joined: 0, heads; 1, channels.
    """
    compiled = [mx.compile(lambda *args: fn(*args)) for _ in range(cores())]   # one a stream: each is traced on its own

    def run(by_channel, D, kw, table):
        heads, channels, size = kw.shape[0], by_channel[0].shape[1], by_channel[0].size
        if size < SMALL:
            return fn(by_channel, D, kw, table)
        if size < ALONE or mx.default_device() != mx.cpu:
            return compiled[0](by_channel, D, kw, table)
        parts, each, whole = min(len(compiled) if size < MANY else max(len(compiled), PARTS), heads), channels // heads, None
        for i in range(parts):
            h, core = slice(i * heads // parts, (i + 1) * heads // parts), i % len(compiled)
            c = slice(h.start * each, h.stop * each)
            with mx.stream(_streams()[core - 1]) if core else nullcontext():
                found = compiled[core]([x[:, c] for x in by_channel], None if D is None else D[c], kw[h], table)
            if whole is None:
                whole = [mx.zeros((heads, *y.shape[1:]) if axis == 0 else (y.shape[0], channels, *y.shape[2:]), y.dtype)
                         for axis, y in zip(joins, found)]
            for axis, out, y in zip(joins, whole, found):
                out[h if axis == 0 else (slice(None), c)] = y
        return tuple(whole)
    return run


@lru_cache(maxsize=8)
def _twist(points: int) -> mx.array:
    return mx.array(twist(points, "complex64"))


@lru_cache(maxsize=8)
def _edge_places(left: int) -> tuple[mx.array, mx.array]:
    return tuple(mx.array(a) for a in edge_places(left))


def _twisted(x, w):
    """As in NumPy's: rows times w^n, what exceeds M points folded in as i x[n + M], transformed."""
    length, points = x.shape[-1], w.shape[0]
    z = x[..., :points] * w[:min(length, points)]
    if length > points:
        z = z.at[..., :length - points].add(x[..., points:] * (1j * w[:length - points]))
    return mx.fft.fft(z, n=points)


def _untwisted(z, w, length):
    """As in NumPy's: first Re(w^-n z[n]), then its imaginary part."""
    points, z = w.shape[0], mx.fft.ifft(z) * mx.conj(w)
    y = mx.real(z)[..., :length]
    return y if length <= points else mx.concatenate([y, mx.imag(z)[..., :length - points]], axis=-1)


def _by_head(x, heads):
    return x.reshape(x.shape[0], heads, x.shape[1] // heads, x.shape[2])


def _mended(x, y, mend, at_end=False):
    """y with the products that wrapped round: from the last of x into the first of y, or the other way."""
    left, heads = mend.shape[-1], mend.shape[0]
    if at_end:
        more = _by_head(x[..., :left], heads) @ mend.swapaxes(1, 2)
        return y.at[..., -left:].add(more.reshape(*y.shape[:2], left))
    more = _by_head(x[..., -left:], heads) @ mend
    return y.at[..., :left].add(more.reshape(*y.shape[:2], left))


def _spectrum(k, k_reverse, length):
    """(plan, spectrum, edge or None) of the taps that an input of `length` meets; kept where the filter is prepared."""
    both = [None if f is None else f[:, :length] for f in filters_of(k, k_reverse)]
    how = plan(length, max(f.shape[1] for f in both if f is not None), both[1] is not None)

    def make():
        w = _twist(how.points)
        made = _twisted(both[0].astype(mx.float32), w)
        if both[1] is not None:
            made = made + mx.conj(_twisted(both[1].astype(mx.float32), w))
        if not how.left:
            return (made,)
        places, there = _edge_places(how.left)
        return made, both[0].astype(mx.float32)[:, -how.left:][:, places] * there

    made = k.spectrum(("right angle", how, length), make) if hasattr(k, "spectrum") else make()
    return how, made[0], made[1] if how.left else None


def _convolved(by_channel, D, kw, w):
    (x,) = by_channel
    z = _by_head(_twisted(x, w), kw.shape[0]) * kw[:, None]
    y = _untwisted(z.reshape(*x.shape[:2], -1), w, x.shape[-1])
    return (y if D is None else y + x * D[:, None],)


def _gradients(by_channel, D, kw, w):
    """(dx, sum over the batch of conj(X) G)."""
    (g, x), heads = by_channel, kw.shape[0]
    g_f = _by_head(_twisted(g, w), heads)
    dx = _untwisted((g_f * mx.conj(kw)[:, None]).reshape(*x.shape[:2], -1), w, x.shape[-1])
    dx = dx if D is None else dx + g * D[:, None]
    return dx, (mx.conj(_by_head(_twisted(x, w), heads)) * g_f).sum((0, 2))


_convolved, _gradients = _shared(_convolved, (1,)), _shared(_gradients, (1, 0))


def _filter_grad(sums, k, how, g, x):
    """The taps of a sum over the batch of conj(X) G; taps beyond x's length never met it."""
    met = min(k.shape[1], x.shape[-1])
    dk = _untwisted(sums, _twist(how.points), met)
    if how.left:
        places, there = _edge_places(how.left)
        tail, head = (_by_head(t, k.shape[0]) for t in (x[..., -how.left:], g[..., :how.left]))
        products = (tail[..., :, None] * head[..., None, :]).sum((0, 2)) * there
        more = mx.zeros((k.shape[0], how.left)).at[:, places.reshape(-1)].add(products.reshape(k.shape[0], -1))
        dk = mx.concatenate([dk[:, :-how.left], dk[:, -how.left:] + more], axis=-1)
    return dk if met == k.shape[1] else mx.pad(dk, ((0, 0), (0, k.shape[1] - met)))


def _rows_as_graph(x, k, D=None, k_reverse=None):
    how, kw, mend = _spectrum(k, k_reverse, x.shape[-1])
    (y,) = _convolved([x], D, kw, _twist(how.points))
    return y if mend is None else _mended(x, y, mend)


def _grad_as_graph(g, x, k, D=None, k_reverse=None):
    how, kw, mend = _spectrum(k, k_reverse, x.shape[-1])
    dx, sums = _gradients([g, x], D, kw, _twist(how.points))
    dx = dx if mend is None else _mended(g, dx, mend, at_end=True)
    found = [dx]
    if not hasattr(k, "spectrum"):
        found.append(_filter_grad(sums, k, how, g, x))
    if D is not None:
        found.append((g * x).sum((0, 2)))
    if k_reverse is not None:
        found.append(_filter_grad(mx.conj(sums), k_reverse, how, g, x))
    return tuple(found)


class _Prepared:
    """A prepared filter as NumPy's functions take it: views of its taps and of its spectra, which stay MLX's."""

    def __init__(self, k):
        self.kept = k
        self.k, self.k_reverse = (None if f is None else SimpleNamespace(data=view(f.data)) for f in (k.k, k.k_reverse))

    def spectrum(self, key, make):
        return tuple(map(view, self.kept.spectrum(("NumPy", *key), lambda: tuple(map(from_numpy, make())))))


def _in_blocks_or(as_graph, in_blocks):
    def call(*args, **static):
        if args[0].size < WORTH[in_blocks.__name__] or not at_hand([a for a in args if isinstance(a, mx.array)]):
            return as_graph(*args, **static)
        results = Results()
        found = in_blocks(*(_Prepared(a) if hasattr(a, "spectrum") else view(a) for a in args), **static, empty=results.empty)
        return tuple(map(results.native, found)) if isinstance(found, tuple) else results.native(found)
    return call


_gated_in_blocks = _in_blocks_or(lambda *args, **static: NotImplemented, blocks.fftconv_rows)


def fftconv_rows(u, *args, **static):
    """As `ember_ml.ops.fftconv` defines it, with its gates in the blocks; a graph is made of its body."""
    return _gated_in_blocks(u, *args, **static) if u.dtype == mx.float32 else NotImplemented


TABLE = {"convolve_rows": _in_blocks_or(_rows_as_graph, blocks.convolve_rows),
         "convolve_grad": _in_blocks_or(_grad_as_graph, blocks.convolve_grad), "fftconv_rows": fftconv_rows}
