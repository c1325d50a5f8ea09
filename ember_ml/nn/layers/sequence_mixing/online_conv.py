"""A long convolution that receives its input bit by bit, exactly, with O(log^2 L) multiply-adds a position.

y_t = sum_{i < l_max} k[i] x_{t - i} + D x_t, where x_t may hang on y_{t-1}. Time is cut into blocks of S positions:

    at every position             the products with the inputs of its own block, one by one
    where a block ends, at t      with U the largest 2^i S that divides t: y[t, t + U) gets what x[t - U, t) adds to it,
                                  by one FFT of 2 U points, which lags 1 ... 2 U - 1 do not wrap

Every pair of an input and an output meets in one of the two. A tile of U costs O(U log U) and comes once in 2 U positions. Taps end at
l_max: with P the least 2^n S that is not below it, time is counted modulo P, at whose multiples U is P.

State: recent (B, C, S), the inputs of this block, the last ones last; future (B, C, S), what earlier blocks add to its outputs; levels, n
arrays. levels[i] (B, C, 2^i S) holds the inputs of a block of that size where bit i of t // S is set; where it is not, what inputs so far add
to the outputs of the next block of that size. For outputs that are out leave their place to their inputs, the P + S numbers of a channel
suffice; as long as the stream has not come so far, levels[i] is empty, (B, C, 0).

Source: Oncescu et al. 2024, Flash Inference: Near Linear Time Inference for Long Convolution Sequence Models and Beyond, algorithm 2; van der
Hoeven 2002, Relax, but don't be too lazy, section 4.
"""

from __future__ import annotations

from math import log2

from ember_ml.autodiff import is_tracing, tree
from ember_ml.ops import PreparedFilter, arange, concat, expand_dims, fftconv, flip, irfft, pad, prepare_filter, rfft, where, zeros
from ember_ml.ops import sum as total
from ember_ml.ops.shape import cut
from ember_ml.tensor import EmberTensor
from ember_ml.tensor.common import dtypes as dt

#: S: so many products are cheaper than the calls of a tile
BLOCK = 64


def period(l_max: int) -> int:
    """P, the power of two at or above l_max."""
    return 1 << (l_max - 1).bit_length()


def multiply_adds(l_max: int) -> float:
    """Multiply-adds for a position of one channel, averaged over P positions, with the spectra at hand.

    A tile of U is two real FFTs of 2 U points, each a complex one of U points, 2.5 U log2 U, and 4 U to take it apart, and 4 U for the product.
    """
    end = period(l_max)
    block = size = min(BLOCK, end)
    found = float(block)
    while size <= end:
        found += (5.0 * size * log2(size) + 12.0 * size) / min(2 * size, end)
        size *= 2
    return found


class OnlineFilter:
    """The filters of a convolution, and what its steps make of them once.

    Args:
        taps: (C, l_max). prepare: whether the taps are constants, of which fftconv may keep the spectra too.
    """

    def __init__(self, taps: EmberTensor, prepare: bool):
        self.taps, self.k = taps, prepare_filter(taps) if prepare else taps
        self._nearest: EmberTensor | None = None
        self._spectra: dict[tuple, EmberTensor] = {}

    def nearest(self, block: int, dtype) -> EmberTensor:
        """The first taps in reverse, (C, block), with zeros where there are fewer."""
        found = self._nearest
        if found is None or found.shape[-1] != block or found.dtype is not dtype:
            found = self._nearest = flip(self._first(block), axis=-1).astype(dtype)
        return found

    def spectrum(self, size: int, dtype) -> EmberTensor:
        """Of the first 2 size taps, (C, size + 1). The two largest, which come once in P positions, are not kept: they are half of all."""
        if 4 * size > period(self.taps.shape[-1]):
            return rfft(self._first(2 * size).astype(dtype), n=2 * size)
        if (size, dtype) not in self._spectra:
            self._spectra[size, dtype] = rfft(self._first(2 * size).astype(dtype), n=2 * size)
        return self._spectra[size, dtype]

    def _first(self, count: int) -> EmberTensor:
        length = self.taps.shape[-1]
        return cut(self.taps, 0, count, axis=-1) if count <= length else pad(self.taps, ((0, 0), (0, count - length)))


def initial_cache(batch: int, channels: int, l_max: int, dtype, like: EmberTensor) -> dict:
    """The state of one convolution (see the module) before the first position; all of it but recent in float32 at least."""
    wide, end = dt.dtype(dtype), period(l_max)
    wide, block = wide if wide.bits >= 32 else dt.float32, min(BLOCK, end)
    return {"recent": zeros((batch, channels, block), dtype, like=like), "future": zeros((batch, channels, block), wide, like=like),
            "levels": [zeros((batch, channels, 0), wide, like=like) for _ in range((end // block).bit_length() - 1)]}


def convolve_step(cache: dict, at: EmberTensor, x: EmberTensor, filters: OnlineFilter) -> tuple[EmberTensor, dict]:
    """(k * x (B, C), next cache) for one position x (B, C).

    Args:
        at: int32 scalar, positions so far; after 2^31 of them it wraps, which counting modulo P does not mind.

    Inside a compiled function no value of `at` is known: every tile is then computed, and one of them chosen.
    """
    if is_tracing():
        return _traced_step(cache, at, x, filters)
    block, future = cache["recent"].shape[-1], cache["future"]
    at = int(at)
    recent, y = _nearest(cache, x, filters)
    y = (y + future[..., at % block]).astype(x.dtype)
    went_on = {**cache, "recent": recent}
    return y, _close(went_on, at + 1, 0, recent, filters) if (at + 1) % block == 0 else went_on


def convolve_chunk(cache: dict, at: EmberTensor, x: EmberTensor, D: EmberTensor, filters: OnlineFilter) -> tuple[EmberTensor, dict]:
    """(k * x + D x (B, C, L), next cache) for a stretch of positions x (B, C, L), L >= 1; `at` as in `convolve_step`.

    It is taken in runs: to the end of a block, then in blocks of the largest size that its place allows and its rest fills.
    """
    length, found = x.shape[-1], []
    if is_tracing():                                       # the shapes below hang on the value of `at`
        for t in range(length):
            y, cache = convolve_step(cache, at + t, x[..., t], filters)
            found.append(expand_dims(y, -1))
        return concat(found, axis=-1) + expand_dims(D, -1) * x, cache
    block, wide = cache["recent"].shape[-1], cache["future"].dtype
    t, begin = int(at), 0
    while begin < length:
        place, left = t % block, length - begin
        if place or left < block:
            size = min(left, block - place)
            part = cut(x, begin, begin + size, axis=-1).astype(wide)
            known = part if not place else concat([cut(cache["recent"], block - place, block, axis=-1).astype(wide), part], axis=-1)
            y = cut(fftconv(known, filters.k), place, place + size, axis=-1) + cut(cache["future"], place, place + size, axis=-1)
            recent = concat([cut(cache["recent"], size, block, axis=-1), part.astype(cache["recent"].dtype)], axis=-1)
            cache = {**cache, "recent": recent}
            if place + size == block:
                cache = _close(cache, t + size, 0, recent, filters)
        else:
            level = min(_level(t, cache), (left // block).bit_length() - 1)
            size = block << level
            part = cut(x, begin, begin + size, axis=-1).astype(wide)
            y = fftconv(part, filters.k) + concat([cache["future"], *_filled(cache, level)[:level]], axis=-1)
            cache = _close(cache, t + size, level, part, filters)
        found.append(y)
        t, begin = (t + size) % (block << len(cache["levels"])), begin + size
    y = found[0] if len(found) == 1 else concat(found, axis=-1)
    return (y + expand_dims(D, -1) * x).astype(x.dtype), cache


def _nearest(cache: dict, x: EmberTensor, filters: OnlineFilter) -> tuple[EmberTensor, EmberTensor]:
    """The inputs of the block with x, and their products with the first taps."""
    block, wide = cache["recent"].shape[-1], cache["future"].dtype
    recent = concat([cut(cache["recent"], 1, block, axis=-1), expand_dims(x, -1).astype(cache["recent"].dtype)], axis=-1)
    return recent, total(recent.astype(wide) * filters.nearest(block, wide), axis=-1)


def _level(t: int, cache: dict) -> int:
    """i of the largest block, 2^i S, that ends at t."""
    most = len(cache["levels"])
    blocks = t // cache["recent"].shape[-1] % (1 << most)
    return most if blocks == 0 else (blocks & -blocks).bit_length() - 1


def _close(cache: dict, t: int, below: int, run: EmberTensor, filters: OnlineFilter) -> dict:
    """The cache after a block of 2^below S inputs, `run`, that ends at t and whose outputs are out."""
    return _tiled(cache, _level(t, cache), below, run, filters)


def _tiled(cache: dict, level: int, below: int, run: EmberTensor, filters: OnlineFilter) -> dict:
    """The same with the tile known: it takes the blocks between `below` and `level` with the run, and gives their places to what it adds."""
    levels, future = list(cache["levels"]), cache["future"]
    block = future.shape[-1]
    parts = [*reversed(levels[below:level]), run.astype(future.dtype)]
    inputs = parts[0] if len(parts) == 1 else concat(parts, axis=-1)
    size = inputs.shape[-1]
    added = irfft(rfft(inputs, n=2 * size) * filters.spectrum(size, future.dtype), n=2 * size)[..., size:]
    if level < len(levels):
        added = added + levels[level] if levels[level].shape[-1] else added
        levels[level] = inputs
    levels[:level] = [cut(added, block << i, block << (i + 1), axis=-1) for i in range(level)]
    return {"recent": cache["recent"].zeros_like(), "future": cut(added, 0, block, axis=-1), "levels": levels}


def _filled(cache: dict, count: int | None = None) -> list[EmberTensor]:
    """The first levels, zeros in those that the stream has not come to."""
    block = cache["recent"].shape[-1]
    return [x if x.shape[-1] else zeros((*x.shape[:-1], block << i), x.dtype, like=x) for i, x in enumerate(cache["levels"][:count])]


def _traced_step(cache: dict, at: EmberTensor, x: EmberTensor, filters: OnlineFilter) -> tuple[EmberTensor, dict]:
    block, future = cache["recent"].shape[-1], cache["future"]
    recent, y = _nearest(cache, x, filters)
    here = arange(block, like=at) == at % block
    y = y + total(where(here, future, future.zeros_like()), axis=-1)
    found = before = {"recent": recent, "future": future, "levels": _filled(cache)}
    most = len(before["levels"])
    for level in range(most + 1):
        after = _tiled(before, level, 0, recent, filters)
        ends = (at + 1) % (block << min(level + 1, most)) == (block << level if level < most else 0)
        found = tree.map(lambda a, b: where(ends, a, b), after, found)
    return y.astype(x.dtype), found
