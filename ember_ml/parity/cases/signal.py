"""Fourier transforms and convolutions."""

from __future__ import annotations

import numpy as np

from ember_ml import ops
from ember_ml.ops.conv import depthwise_grad
from ember_ml.ops.convolve import convolve_grad, convolve_rows
from ember_ml.ops.fftconv import fftconv_grad
from ember_ml.parity.cases.case import WIDENED, draws, row

real, ints = draws(6)

_WHOLE = "transforms are of float32 and wider"
for _n in (8, 7):
    row("rfft", lambda x, n=_n: ops.rfft(x, n=n), [real(2, 6)], lambda x, n=_n: np.fft.rfft(x, n), label=f"n = {_n}", single=_WHOLE, empty=(0,))
    row("irfft", lambda x, n=_n: ops.irfft(x, n=n), [real(2, 5) + 1j * real(2, 5)], lambda x, n=_n: np.fft.irfft(x, n), label=f"n = {_n}",
        empty=(0,))
    row("fft", lambda x, n=_n: ops.fft(x, n=n), [real(2, 6) + 1j * real(2, 6)], lambda x, n=_n: np.fft.fft(x, n), label=f"n = {_n}", empty=(0,))
    row("ifft", lambda x, n=_n: ops.ifft(x, n=n, axis=0), [real(6, 2) + 1j * real(6, 2)], lambda x, n=_n: np.fft.ifft(x, n, axis=0),
        label=f"n = {_n}")
row("ifft", ops.ifft, [real(2, 6) + 1j * real(2, 6)], np.fft.ifft, label="last axis", empty=(0,))


def _short(x, w, b):
    taps = w.shape[1]
    wide = np.pad(x, ((0, 0), (0, 0), (taps - 1, 0)))
    return sum(wide[:, :, j:j + x.shape[2]] * w[:, j, None] for j in range(taps)) + b[:, None]


def _conv1d(x, w, b=None, stride=1, padding=(0, 0), dilation=1, groups=1):
    x = np.pad(x, ((0, 0), (0, 0), padding))
    per, out = w.shape[1], w.shape[0] // groups
    places = range(0, x.shape[2] - dilation * (w.shape[2] - 1), stride)
    y = np.stack([[[sum(w[o, c, j] * x[n, o // out * per + c, t + j * dilation] for c in range(per) for j in range(w.shape[2]))
                    for t in places] for o in range(w.shape[0])] for n in range(len(x))])
    return y if b is None else y + b[:, None]


for _label, _w, _kw in [("plain", real(4, 3, 2), {}), ("centred", real(4, 3, 3), {"padding": (1, 1)}), ("causal", real(4, 3, 3), {"padding": (2, 0)}),
                        ("strided", real(4, 3, 3), {"stride": 2, "padding": (1, 2)}), ("dilated", real(4, 3, 2), {"dilation": 3}),
                        ("grouped", real(6, 1, 2), {"groups": 3, "stride": 3})]:
    row("conv1d_rows", lambda x, w, b, kw=_kw: ops.conv1d(x, w, b, **kw), [real(2, 3, 7), _w, real(_w.shape[0])],
        lambda x, w, b, kw=_kw: _conv1d(x, w, b, **kw), label=_label, empty=(0,))
row("depthwise_rows", ops.short_conv, [real(2, 4, 6), real(4, 3), real(4)], _short, empty=(0,))
row("depthwise_rows", ops.short_conv, [real(2, 2, 18), real(2, 14), real(2)], _short, label="many taps")
row("depthwise_rows", ops.short_conv, [real(2, 4, 1), real(4, 3), real(4)], _short, label="one step")
row("depthwise_rows", lambda x, w, b: ops.short_conv(x, w, b, silu=True), [real(2, 4, 6), real(4, 3), real(4)],
    lambda x, w, b: _short(x, w, b) / (1.0 + np.exp(-_short(x, w, b))), label="silu", empty=(0,))
row("depthwise_rows", lambda x, w, b: ops.short_conv(x, w, b, channels_last=True), [real(2, 4, 6), real(4, 3), real(4)],
    lambda x, w, b: _short(x, w, b).swapaxes(1, 2), label="channels last", empty=(0,))
row("depthwise_grad", lambda g, x, w: depthwise_grad(g, x, w)[1], [real(2, 4, 6), real(2, 4, 6), real(4, 3)],
    lambda g, x, w: np.stack([(g[..., 2 - j:] * x[..., :4 + j]).sum(axis=(0, 2)) for j in range(3)], axis=1), result=WIDENED)
row("fftconv_rows", lambda u, k: ops.fftconv(u, k), [real(2, 3, 9), real(3, 9)],
    lambda u, k: np.stack([np.stack([np.convolve(u[b, c], k[c])[:9] for c in range(3)]) for b in range(2)]), empty=(0,))


def _both_ways(x, k, D, k_reverse):
    C, L, each = x.shape[1], x.shape[2], x.shape[1] // k.shape[0]
    y = [np.convolve(x[b, c], k[c // each])[:L] + np.convolve(x[b, c, ::-1], k_reverse[c // each])[:L][::-1] + D[c] * x[b, c]
         for b in range(len(x)) for c in range(C)]
    return np.reshape(y, x.shape)


_CAST = "its callers cast to float32"
row("convolve_rows", convolve_rows, [real(2, 4, 7), real(2, 5), real(4), real(2, 3)], _both_ways, single=_CAST)


def _lagged(g, x, k):
    return np.array([[sum(g[b, c, t] * x[b, c, t - j] for b in range(2) for t in range(j, 5)) for j in range(3)] for c in range(2)])


row("convolve_grad", lambda g, x, k: convolve_grad(g, x, k)[1], [real(2, 2, 5), real(2, 2, 5), real(2, 3)], _lagged, single=_CAST)
row("fftconv_grad", lambda g, x, k: fftconv_grad(g, x, k)[1], [real(2, 2, 5), real(2, 2, 5), real(2, 3)], _lagged, result=WIDENED)
