"""Log-mel spectra: what of a sound is heard when."""

from __future__ import annotations

import numpy as np

from ember_ml.errors import DataError


def mel(hertz):
    """2595 log10(1 + f / 700), the pitch that is heard. Source: O'Shaughnessy 1987, Speech Communication, page 150."""
    return 2595.0 * np.log10(1.0 + np.asarray(hertz, np.float64) / 700.0)


def mel_filters(bands: int, points: int, rate: int) -> np.ndarray:
    """float64 (bands, points // 2 + 1): triangles over the frequencies of a `points`-point transform.

    Evenly spaced in mel from 0 to rate / 2, each rises from the centre of the one before to 1 at its own and falls to the centre of the next.

    Raises DataError for so many bands that one would hold no frequency.
    """
    centres = 700.0 * (10.0 ** (np.linspace(0.0, mel(rate / 2), bands + 2) / 2595.0) - 1.0)
    frequencies = np.arange(points // 2 + 1) * (rate / points)
    rise = (frequencies - centres[:-2, None]) / (centres[1:-1] - centres[:-2])[:, None]
    fall = (centres[2:, None] - frequencies) / (centres[2:] - centres[1:-1])[:, None]
    filters = np.maximum(0.0, np.minimum(rise, fall))
    if not filters.any(1).all():
        raise DataError(f"mel_filters: expected fewer bands than {bands} for windows of {points} samples at {rate} Hz: some are empty")
    return filters


def log_mel(samples: np.ndarray, rate: int, bands: int = 40, window: float = 0.025, hop: float = 0.010) -> np.ndarray:
    """log(1e-6 + filters |DFT(w x_t)|^2) for each frame x_t, with w the Hann window.

    Args:
        samples: (N,), from -1 to 1. rate: samples a second. bands: of the result. window, hop: seconds that a frame lasts, and from the
            beginning of one to that of the next. Less than a frame is filled with zeros.

    Returns: float32 (frames, bands), frames = 1 + (N - n) // h for n, h samples of window and hop.

    Source: Davis and Mermelstein 1980, Comparison of Parametric Representations for Monosyllabic Word Recognition, without the last
    transform.
    """
    n, h = round(window * rate), round(hop * rate)
    if samples.ndim != 1 or samples.size == 0 or n < 2 or h < 1:
        raise DataError(f"log_mel: expected samples (N,), and a window and a hop of at least 2 and 1 of them; got {samples.shape}, {n}, "
                        f"{h}")
    x = np.pad(samples.astype(np.float64), (0, max(0, n - samples.size)))
    frames = np.lib.stride_tricks.sliding_window_view(x, n)[::h]
    points = 1 << (n - 1).bit_length()
    hann = 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(n) / n)
    power = np.square(np.abs(np.fft.rfft(frames * hann, points, axis=1)))
    return np.log(1e-6 + power @ mel_filters(bands, points, rate).T).astype(np.float32)
