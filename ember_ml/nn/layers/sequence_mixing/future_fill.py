"""A long convolution that receives its input bit by bit, without L products for every position.

Time is cut into epochs of E positions. What all earlier epochs add to the outputs of the present one is computed at its start,
by one FFT convolution; inside the epoch each position adds a product with the first E taps:

    y_t = future_t + sum_{i < E} k[i] x_{t - i} + D x_t,    x_{t - i} from the present epoch only

A position costs E products, and an epoch one convolution of O(L log L): with E near sqrt(L log L), O(sqrt(L log L)) each.

Source: Agarwal et al. 2024, FutureFill: Fast Generation from Convolutional Sequence Models, algorithm 2.
"""

from __future__ import annotations

from math import log2, sqrt

from ember_ml.autodiff import is_tracing
from ember_ml.ops import concat, expand_dims, fftconv, flip, pad, where, zeros
from ember_ml.ops import sum as total
from ember_ml.ops.shape import cut
from ember_ml.tensor import EmberTensor
from ember_ml.tensor.common import dtypes as dt


def epoch_length(l_max: int) -> int:
    """E, the power of two at or below 8 sqrt(l_max), where both costs are about equal, and l_max / 3."""
    return 1 << max(int(log2(max(1.0, min(8.0 * sqrt(l_max), l_max / 3)))), 0)


def multiply_adds(l_max: int) -> float:
    """Multiply-adds for a position of one channel, averaged over an epoch: the products, and two FFTs with the spectrum at hand."""
    epoch = epoch_length(l_max)
    points = l_max + epoch                                 # complex points of the convolution that fills the future
    return epoch + (2 * 2.5 * points * log2(points) + 4 * points) / epoch


def initial_cache(batch: int, channels: int, l_max: int, dtype, like: EmberTensor) -> dict:
    """past (B, C, l_max), inputs of earlier epochs; recent (B, C, E), those of this one, the last ones last; future (B, C, E)."""
    epoch, wide = epoch_length(l_max), dt.dtype(dtype)
    wide = wide if wide.bits >= 32 else dt.float32
    return {"past": zeros((batch, channels, l_max), dtype, like=like), "recent": zeros((batch, channels, epoch), dtype, like=like),
            "future": zeros((batch, channels, epoch), wide, like=like)}


def _fill(past: EmberTensor, k, epoch: int, dtype) -> EmberTensor:
    """What the past adds to the next `epoch` outputs."""
    length = past.shape[-1]
    joined = pad(past.astype(dtype), ((0, 0), (0, 0), (0, epoch)))
    return cut(fftconv(joined, k), length, length + epoch, axis=-1)


def _shifted(x: EmberTensor, by: int) -> EmberTensor:
    """Without its first `by` positions, zeros behind."""
    return x if by == 0 else pad(cut(x, by, x.shape[-1], axis=-1), ((0, 0), (0, 0), (0, by)))


def _roll(past: EmberTensor, recent: EmberTensor) -> EmberTensor:
    length = past.shape[-1]
    return cut(concat([past, recent], axis=-1), recent.shape[-1], recent.shape[-1] + length, axis=-1)


def convolve_step(cache: dict, at: EmberTensor, x: EmberTensor, taps: EmberTensor, k) -> tuple[EmberTensor, dict]:
    """(y (B, C), next cache) for one position x (B, C).

    Args:
        at: int32 scalar, positions of this epoch so far. taps: (C, l_max), the filters. k: the same as `fftconv` takes them.

    Inside a compiled function no value of `at` is known: both ways are then computed, and one of them chosen.
    """
    epoch = cache["recent"].shape[-1]
    met = min(epoch, taps.shape[-1])
    recent = concat([cut(cache["recent"], 1, epoch, axis=-1), expand_dims(x, -1).astype(cache["recent"].dtype)], axis=-1)
    latest = cut(recent, epoch - met, epoch, axis=-1).astype(x.dtype)
    y = total(latest * flip(cut(taps, 0, met, axis=-1), axis=-1), axis=-1) + cache["future"][..., 0].astype(x.dtype)
    went_on = {"past": cache["past"], "recent": recent, "future": _shifted(cache["future"], 1)}
    traced = is_tracing()
    if not traced and int(at) + 1 < epoch:
        return y, went_on
    past = _roll(cache["past"], recent)
    began = {"past": past, "recent": recent.zeros_like(), "future": _fill(past, k, epoch, cache["future"].dtype)}
    if not traced:
        return y, began
    return y, {name: where(at + 1 < epoch, went_on[name], began[name]) for name in cache}


def next_at(at: EmberTensor, length: int, l_max: int) -> EmberTensor:
    """Positions of the epoch after `length` more."""
    return (at + length) % epoch_length(l_max)


def convolve_chunk(cache: dict, at: EmberTensor, x: EmberTensor, D: EmberTensor, taps: EmberTensor, k) -> tuple[EmberTensor, dict]:
    """(k * x + D x (B, C, L), next cache) for a stretch of positions x (B, C, L), L >= 1; arguments as in `convolve_step`."""
    if is_tracing():                                       # the shapes below hang on the value of `at`
        found = []
        for t in range(x.shape[-1]):
            y, cache = convolve_step(cache, at, x[..., t], taps, k)
            at = next_at(at, 1, cache["past"].shape[-1])
            found.append(expand_dims(y + D * x[..., t], -1))
        return concat(found, axis=-1), cache
    epoch, length = cache["recent"].shape[-1], x.shape[-1]
    before, room = int(at), cache["past"].shape[-1]
    known = [cache["past"], cut(cache["recent"], epoch - before, epoch, axis=-1)] if before else [cache["past"]]
    joined = concat([*known, x.astype(cache["past"].dtype)], axis=-1)
    end = joined.shape[-1]
    y = cut(fftconv(joined.astype(x.dtype), k, D), end - length, end, axis=-1)
    after = (before + length) % epoch
    if before + length < epoch:
        past, future = cache["past"], _shifted(cache["future"], length)
    else:
        past = cut(joined, end - after - room, end - after, axis=-1)
        future = _shifted(_fill(past, k, epoch, cache["future"].dtype), after)
    recent = cache["recent"].zeros_like()
    if after:
        recent = pad(cut(joined, end - after, end, axis=-1), ((0, 0), (0, 0), (epoch - after, 0)))
    return y, {"past": past, "recent": recent, "future": future}
