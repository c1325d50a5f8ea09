"""Discrete Fourier transforms along one axis, unscaled forward and 1/n backward.

    fft:  X[f] = sum_n x[n] exp(-2 pi i f n / N)          ifft: x[n] = 1/N sum_f X[f] exp(2 pi i f n / N)

float32 gives complex64 on every engine; float64 gives complex128 where the engine has it.
"""

from __future__ import annotations

from ember_ml.ops.declare import op
from ember_ml.ops.elementwise import real
from ember_ml.ops.shape import concat, cut, pad


def _sized(x, n, axis):
    """x cut or padded with zeros to n along axis: the adjoint of the transform's own cutting or padding."""
    have = x.shape[axis]
    if have > n:
        return cut(x, 0, n, axis=axis)
    if have < n:
        return pad(x, tuple((0, n - have) if i == axis % x.ndim else (0, 0) for i in range(x.ndim)))
    return x


def _fft_grad(g, x, n, axis):
    size = n or x.shape[axis]
    return _sized(ifft(g, axis=axis) * size, x.shape[axis], axis)


def _ifft_grad(g, x, n, axis):
    size = n or x.shape[axis]
    return _sized(fft(g, axis=axis) / size, x.shape[axis], axis)


@op(vjp=(lambda g, _y, x, *, n=None, axis=-1: _fft_grad(g, x, n, axis),))
def fft(x, *, n=None, axis=-1):
    """Complex transform along `axis`, of x cut or zero-padded to n."""
    ...


@op(vjp=(lambda g, _y, x, *, n=None, axis=-1: _ifft_grad(g, x, n, axis),))
def ifft(x, *, n=None, axis=-1):
    """Inverse complex transform along `axis`, of x cut or zero-padded to n."""
    ...


def _rfft_grad(g, x, n, axis):
    # The adjoint sums over the n//2 + 1 frequencies that there are, once each: a complex inverse, not irfft.
    size = n or x.shape[axis]
    full = pad(g, tuple((0, size - g.shape[axis]) if i == axis % g.ndim else (0, 0) for i in range(g.ndim)))
    return _sized(real(ifft(full, axis=axis)) * size, x.shape[axis], axis)


@op(vjp=(lambda g, _y, x, *, n=None, axis=-1: _rfft_grad(g, x, n, axis),))
def rfft(x, *, n=None, axis=-1):
    """Frequencies 0 ... n//2 of a real x, cut or zero-padded to n along `axis`."""
    ...


def _irfft_grad(g, x, n, axis):
    # Frequencies strictly between 0 and n/2 stand for two, so they get twice the gradient; 0 and n/2 are real.
    size = n or 2 * (x.shape[axis] - 1)
    spectrum = rfft(g, axis=axis) / size
    bins = spectrum.shape[axis]
    twice = bins - 1 - (size % 2 == 0)
    at = axis % g.ndim
    first, rest = cut(spectrum, 0, 1, axis=at), cut(spectrum, 1, bins, axis=at)
    inner, last = cut(rest, 0, twice, axis=at), cut(rest, twice, bins - 1, axis=at)
    first, last = real(first).astype(x.dtype), real(last).astype(x.dtype)
    return _sized(concat([first, inner * 2.0, last], axis=at), x.shape[axis], axis)


@op(vjp=(lambda g, _y, x, *, n=None, axis=-1: _irfft_grad(g, x, n, axis),))
def irfft(x, *, n=None, axis=-1):
    """The real sequence of length n (default 2 (bins - 1)) whose frequencies 0 ... n//2 are x along `axis`.

    The imaginary parts of frequency 0 and, for even n, of n/2 are not read.
    """
    ...
