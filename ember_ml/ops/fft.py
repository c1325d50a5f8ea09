"""Discrete Fourier transforms, unscaled forward and 1/n backward; norm "ortho": 1/sqrt(n) both ways, "forward": 1/n forward.

    fft:  X[f] = sum_n x[n] exp(-2 pi i f n / N)          ifft: x[n] = 1/N sum_f X[f] exp(2 pi i f n / N)

float32, and integers, give complex64 on every engine; float64 gives complex128 where the engine has it.
"""

from __future__ import annotations

from ember_ml.errors import ShapeError
from ember_ml.ops.creation import arange
from ember_ml.ops.declare import op
from ember_ml.ops.elementwise import conj, real, where
from ember_ml.ops.rearrange import roll
from ember_ml.ops.shape import checked_axes, concat, cut, pad
from ember_ml.tensor import EmberTensor


def _sized(x, n, axis):
    """x cut or padded with zeros to n along axis: the adjoint of the transform's own cutting or padding."""
    have = x.shape[axis]
    if have > n:
        return cut(x, 0, n, axis=axis)
    if have < n:
        return pad(x, tuple((0, n - have) if i == axis % x.ndim else (0, 0) for i in range(x.ndim)))
    return x


#: the scale of the adjoint, which is the transform the other way: what one direction does not divide by, the other does
_OTHER = {"backward": "forward", "forward": "backward", "ortho": "ortho"}


def _fft_grad(g, x, axis, norm):
    return _sized(ifft(g, axis=axis, norm=_OTHER[norm]), x.shape[axis], axis)


def _ifft_grad(g, x, axis, norm):
    return _sized(fft(g, axis=axis, norm=_OTHER[norm]), x.shape[axis], axis)


@op(rule="float", vjp=(lambda g, _y, x, *, n=None, axis=-1, norm="backward": _fft_grad(g, x, axis, norm),))
def fft(x, *, n=None, axis=-1, norm="backward"):
    """Complex transform along `axis`, of x cut or zero-padded to n."""
    ...


@op(rule="float", vjp=(lambda g, _y, x, *, n=None, axis=-1, norm="backward": _ifft_grad(g, x, axis, norm),))
def ifft(x, *, n=None, axis=-1, norm="backward"):
    """Inverse complex transform along `axis`, of x cut or zero-padded to n."""
    ...


def _rfft_grad(g, x, n, axis, norm):
    # The adjoint sums over the n//2 + 1 frequencies that there are, once each: a complex inverse, not irfft.
    size = n or x.shape[axis]
    full = pad(g, tuple((0, size - g.shape[axis]) if i == axis % g.ndim else (0, 0) for i in range(g.ndim)))
    return _sized(real(ifft(full, axis=axis, norm=_OTHER[norm])), x.shape[axis], axis)


@op(rule="float", vjp=(lambda g, _y, x, *, n=None, axis=-1, norm="backward": _rfft_grad(g, x, n, axis, norm),))
def rfft(x, *, n=None, axis=-1, norm="backward"):
    """Frequencies 0 ... n//2 of a real x, cut or zero-padded to n along `axis`."""
    ...


def _irfft_grad(g, x, n, axis, norm):
    # Frequencies strictly between 0 and n/2 stand for two, so they get twice the gradient; 0 and n/2 are real.
    size = n or 2 * (x.shape[axis] - 1)
    spectrum = rfft(g, axis=axis, norm=_OTHER[norm])
    bins = spectrum.shape[axis]
    twice = bins - 1 - (size % 2 == 0)
    at = axis % g.ndim
    first, rest = cut(spectrum, 0, 1, axis=at), cut(spectrum, 1, bins, axis=at)
    inner, last = cut(rest, 0, twice, axis=at), cut(rest, twice, bins - 1, axis=at)
    first, last = real(first).astype(x.dtype), real(last).astype(x.dtype)
    return _sized(concat([first, inner * 2.0, last], axis=at), x.shape[axis], axis)


@op(vjp=(lambda g, _y, x, *, n=None, axis=-1, norm="backward": _irfft_grad(g, x, n, axis, norm),))
def irfft(x, *, n=None, axis=-1, norm="backward"):
    """The real sequence of length n (default 2 (bins - 1)) whose frequencies 0 ... n//2 are x along `axis`.

    The imaginary parts of frequency 0 and, for even n, of n/2 are not read.
    """
    ...


def hfft(x: EmberTensor, n: int | None = None, axis: int = -1, norm: str = "backward") -> EmberTensor:
    """The real spectrum, of length n, of a sequence that is its own mirrored conjugate, given by its first half x along `axis`."""
    return irfft(conj(x), n=n, axis=axis, norm=_OTHER[norm])


def ihfft(x: EmberTensor, n: int | None = None, axis: int = -1, norm: str = "backward") -> EmberTensor:
    """The first half of the sequence whose spectrum is the real x, cut or zero-padded to n along `axis`: the inverse of `hfft`."""
    return conj(rfft(x, n=n, axis=axis, norm=_OTHER[norm]))


def _over(x, s, axes, name):
    """Pairs of (axis, length or None)."""
    if axes is None:
        axes = range(x.ndim) if s is None else range(x.ndim - len(s), x.ndim)
    axes = checked_axes(tuple(axes), x.ndim, name)
    if s is not None and len(s) != len(axes):
        raise ShapeError(f"{name}: expected a length per axis, got {len(s)} lengths for {len(axes)} axes")
    return list(zip(axes, s or (None,) * len(axes)))


def fftn(x: EmberTensor, s=None, axes=None, norm: str = "backward") -> EmberTensor:
    """`fft` along several axes (None: the last len(s), or all), cut or padded to the lengths s."""
    for axis, n in _over(x, s, axes, "fftn"):
        x = fft(x, n=n, axis=axis, norm=norm)
    return x


def ifftn(x: EmberTensor, s=None, axes=None, norm: str = "backward") -> EmberTensor:
    """`ifft` along several axes (None: the last len(s), or all), cut or padded to the lengths s."""
    for axis, n in _over(x, s, axes, "ifftn"):
        x = ifft(x, n=n, axis=axis, norm=norm)
    return x


def rfftn(x: EmberTensor, s=None, axes=None, norm: str = "backward") -> EmberTensor:
    """`rfft` along the last of several axes, `fft` along the others."""
    *others, (axis, n) = _over(x, s, axes, "rfftn")
    y = rfft(x, n=n, axis=axis, norm=norm)
    for axis, n in others:
        y = fft(y, n=n, axis=axis, norm=norm)
    return y


def irfftn(x: EmberTensor, s=None, axes=None, norm: str = "backward") -> EmberTensor:
    """The inverse of `rfftn`: `ifft` along all but the last of several axes, then `irfft`."""
    *others, (last, length) = _over(x, s, axes, "irfftn")
    for axis, n in others:
        x = ifft(x, n=n, axis=axis, norm=norm)
    return irfft(x, n=length, axis=last, norm=norm)


def fftfreq(n: int, d: float = 1.0, dtype=None, device: str | None = None) -> EmberTensor:
    """Frequencies of the places of `fft` for n samples d apart: 0, 1, ..., then the negative ones, over n d. dtype None: float32."""
    places = arange(n, device=device)
    return (where(places < (n + 1) // 2, places, places - n)).astype(dtype or "float32") / (n * d)


def rfftfreq(n: int, d: float = 1.0, dtype=None, device: str | None = None) -> EmberTensor:
    """Frequencies of the places of `rfft` for n samples d apart: 0, 1, ..., n//2, over n d. dtype None: float32."""
    return arange(n // 2 + 1, device=device).astype(dtype or "float32") / (n * d)


def fftshift(x: EmberTensor, axes=None) -> EmberTensor:
    """x with frequency 0 in the middle of `axes` (None: all)."""
    axes = checked_axes(axes, x.ndim, "fftshift")
    return roll(x, tuple(x.shape[a] // 2 for a in axes), axes)


def ifftshift(x: EmberTensor, axes=None) -> EmberTensor:
    """x with frequency 0 back in front of `axes` (None: all): undoes `fftshift`."""
    axes = checked_axes(axes, x.ndim, "ifftshift")
    return roll(x, tuple(-(x.shape[a] // 2) for a in axes), axes)


__all__ = ["fft", "fftfreq", "fftn", "fftshift", "hfft", "ifft", "ifftn", "ifftshift", "ihfft", "irfft", "irfftn", "rfft", "rfftfreq", "rfftn"]
