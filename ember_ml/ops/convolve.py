"""The convolution inside `fftconv`: rows with filters, and its gradient; the engines have it natively, block by block.

The bodies here pad to an even size of at least L + K - 1 and multiply the real transforms: they serve engines without
a function of their own, and are what the others are held against.
"""

from __future__ import annotations

from functools import lru_cache

from ember_ml.autodiff import tape
from ember_ml.ops.declare import op
from ember_ml.ops.elementwise import conj
from ember_ml.ops.fft import irfft, rfft
from ember_ml.ops.fftconv_filter import PreparedFilter
from ember_ml.ops.reduce import sum as total
from ember_ml.ops.shape import cut, expand_dims, pad, reshape
from ember_ml.tensor import EmberTensor


@lru_cache(maxsize=256)
def fft_size(at_least: int) -> int:
    """The smallest 2^a 3^b 5^c that is even and not below `at_least`: sizes that every FFT library does fast."""
    best = 1 << max(at_least - 1, 1).bit_length()
    three = 1
    while three < best:
        five = three
        while five < best:
            two = 2
            while five * two < at_least:
                two *= 2
            best = min(best, five * two)
            five *= 5
        three *= 3
    return best


def both_filters(k, k_reverse):
    """The two filters, of which a prepared one holds both."""
    return (k.k, k.k_reverse) if isinstance(k, PreparedFilter) else (k, k_reverse)


def _size(x, k, k_reverse) -> int:
    longest = max(f.shape[-1] for f in both_filters(k, k_reverse) if f is not None)
    return fft_size(x.shape[-1] + min(longest, x.shape[-1]) - 1)


def _spectrum(k, k_reverse, x, n):
    """rfft(k) + conj(rfft(k_reverse)) of the taps that x meets, (H, 1, n / 2 + 1); kept where the filter is prepared."""
    length, kind = x.shape[-1], x.dtype

    def make():
        kept = [None if f is None else cut(f, 0, min(f.shape[-1], length), axis=-1).astype(kind)
                for f in both_filters(k, k_reverse)]
        f = rfft(kept[0], n=n)
        return expand_dims(f if kept[1] is None else f + conj(rfft(kept[1], n=n)), 1)

    if not isinstance(k, PreparedFilter):
        return make()
    return EmberTensor(k.spectrum(("rfft", n, length, kind), lambda: (make().data,))[0], k.k.backend)


def _heads(x, k_f):
    """(B, C, L) as (B, H, C / H, L)."""
    heads = k_f.shape[0]
    return reshape(x, (x.shape[0], heads, x.shape[1] // heads, x.shape[2]))


def _apply(x_f, k_f, n, like):
    return reshape(cut(irfft(x_f * k_f, n=n), 0, like.shape[-1], axis=-1), like.shape)


def _filter_grad(correlation, k, length):
    """The first taps of the correlation; taps beyond the input's length never met it."""
    met = min(k.shape[-1], length)
    part = cut(correlation, 0, met, axis=-1)
    return part if met == k.shape[-1] else pad(part, ((0, 0), (0, k.shape[-1] - met)))


def _grad_of_grad(g, _out, cot, x, k, D=None, k_reverse=None):
    args = [cot, x, k, D, k_reverse]
    places = [i for i, a in enumerate(args) if isinstance(a, EmberTensor)]

    def again(tensors):
        full = list(args)
        for i, t in zip(places, tensors):
            full[i] = t
        return convolve_grad.op.body(*full)

    found = dict(zip(places, tape.pull(again, [args[i] for i in places], list(g))))
    return [found.get(i) for i in range(len(args))]


@op(vjp=_grad_of_grad, owns_gradient=True)
def convolve_grad(g, x, k, D=None, k_reverse=None):
    """(dx, dk, dD, dk_reverse) of `convolve_rows` for its output's gradient g, without those whose argument is no array."""
    n = _size(x, k, k_reverse)
    k_f = _spectrum(k, k_reverse, x, n)
    g_f, x_f = rfft(_heads(g, k_f), n=n), rfft(_heads(x, k_f), n=n)
    dx = _apply(g_f, conj(k_f), n, x)
    found = [dx if D is None else dx + expand_dims(D, -1) * g]
    if not isinstance(k, PreparedFilter):
        found.append(_filter_grad(irfft(total(g_f * conj(x_f), axis=(0, 2)), n=n), k, x.shape[-1]))
    if D is not None:
        found.append(total(g * x, axis=(0, 2)))
    if k_reverse is not None:
        found.append(_filter_grad(irfft(total(conj(g_f) * x_f, axis=(0, 2)), n=n), k_reverse, x.shape[-1]))
    return tuple(found)


def _rule(g, _y, x, k, D=None, k_reverse=None):
    found = iter(convolve_grad(g, x, k, D, k_reverse))
    return [next(found) if isinstance(a, EmberTensor) else None for a in (x, k, D, k_reverse)]


@op(public="convolve", vjp=_rule, owns_gradient=True)
def convolve_rows(x, k, D=None, k_reverse=None):
    """y[b, c, t] = sum_{j <= t} k[h, t - j] x[b, c, j] + sum_{j >= t} k_reverse[h, j - t] x[b, c, j] + D[c] x[b, c, t].

    Args:
        x: (B, C, L), float32 or float64, nothing empty. k: (H, K) or prepared; channel c has the filter h = c H // C.
        D: (C,). k_reverse: (H, K').
    """
    n = _size(x, k, k_reverse)
    k_f = _spectrum(k, k_reverse, x, n)
    y = _apply(rfft(_heads(x, k_f), n=n), k_f, n, x)
    return y if D is None else y + expand_dims(D, -1) * x
