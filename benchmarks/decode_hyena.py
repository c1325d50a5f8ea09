"""Decoding a long convolution with an explicit filter, a position at a time: by tiles (the layer's own step), from a cache of all inputs, and
by epochs.

All three give the same outputs of the same layer on the same engine; what is timed are the convolutions alone. The layer's step is timed over
a whole period of 2^n positions, its largest tiles included; the cache and the epochs in turn with it, over fewer positions. over_cache and
over_epochs are their time by ours; *_mads is the count of multiply-adds for one position of one channel; slowest_ms is the
step that makes the largest tile.

    python -m benchmarks.decode_hyena
"""

from __future__ import annotations

import os
import time
from math import log2

os.environ.setdefault("MLX_ENABLE_TF32", "0")

import ember_ml as em                                      # noqa: E402
from benchmarks.timing import save                         # noqa: E402
from ember_ml.nn.layers.sequence_mixing import online_conv  # noqa: E402
from ember_ml.ops import concat, expand_dims, fftconv, flip, pad, prepare_filter  # noqa: E402
from ember_ml.ops import sum as total                      # noqa: E402
from ember_ml.ops.shape import cut                         # noqa: E402
from ember_ml.registry import layers                       # noqa: E402

WIDTH, PARTS = 256, 16


class Cache:
    """The last l_max inputs, and one product of all of them with the filter."""

    def __init__(self, taps):
        self.reverse, self.past = flip(taps, axis=-1), taps[None].zeros_like()
        self.multiply_adds = taps.shape[-1]

    def step(self, x):
        self.past = concat([cut(self.past, 1, self.past.shape[-1], axis=-1), expand_dims(x, -1)], axis=-1)
        return total(self.past * self.reverse, axis=-1), self.past


class Epochs:
    """FutureFill (Agarwal et al. 2024, algorithm 2): products inside an epoch; at its end one convolution of the whole past."""

    def __init__(self, taps):
        length = taps.shape[-1]
        self.k = prepare_filter(taps)
        self.epoch = 1 << int(log2(8 * length ** 0.5))     # where both costs are about equal
        self.first = flip(cut(taps, 0, self.epoch, axis=-1), axis=-1)
        self.past = taps[None].zeros_like()
        self.recent = self.future = cut(self.past, 0, self.epoch, axis=-1)
        self.at = taps[0, 0].zeros_like("int32")           # a tensor, as in a state
        points = length + self.epoch                       # two real FFTs of so many points, counted as in online_conv, and the product
        self.multiply_adds = self.epoch + (2 * (1.25 * points * log2(points / 2) + 2 * points) + 2 * points) / self.epoch

    def step(self, x):
        self.recent = concat([cut(self.recent, 1, self.epoch, axis=-1), expand_dims(x, -1)], axis=-1)
        at, self.at = int(self.at) % self.epoch, self.at + 1
        y = total(self.recent * self.first, axis=-1) + self.future[..., at]
        if at + 1 == self.epoch:
            length = self.past.shape[-1]
            self.past = cut(concat([self.past, self.recent], axis=-1), self.epoch, length + self.epoch, axis=-1)
            self.future = cut(fftconv(pad(self.past, ((0, 0), (0, 0), (0, self.epoch))), self.k), length, length + self.epoch, axis=-1)
            self.recent = self.recent.zeros_like()
        return y, self.past, self.recent, self.future, self.at


class Tiles:
    """What the layer's own step does."""

    def __init__(self, layer):
        state = layer.initial_state(1)
        self.cache, self.at, self.filters = state["long"], state["at"], layer._decoding(state)
        self.multiply_adds = online_conv.multiply_adds(layer.config.l_max)

    def step(self, x):
        y, self.cache = online_conv.convolve_step(self.cache, self.at, x, self.filters)
        self.at = self.at + 1
        return y, self.cache, self.at


def seconds(side, xs, steps: int) -> tuple[float, float]:
    """Of so many steps, and of the slowest of them."""
    whole = slowest = 0.0
    for t in range(steps):
        start = time.perf_counter()
        found = em.tree.tensors(side.step(xs[t % len(xs)]))
        found[0].backend.runtime.synchronize([leaf.data for leaf in found])
        took = time.perf_counter() - start
        whole, slowest = whole + took, max(slowest, took)
    return whole, slowest


def check(sides, xs):
    """That all sides say the same, before any of them is timed."""
    for x in xs:
        outputs = [side.step(x)[0].numpy() for side in sides]
        for y in outputs[1:]:
            assert abs(y - outputs[0]).max() <= 1e-4 * abs(outputs[0]).max()


def run(engine: str, l_max: int) -> dict:
    period = online_conv.period(l_max)
    with em.using(engine):
        layer = layers.instantiate("long_conv", key=em.random.key(0), d_input=WIDTH, l_max=l_max)
        taps = layer.filters()
        xs = [em.random.normal(em.random.key(i), (1, WIDTH)) for i in range(8)]
        tiles, epochs, cache = sides = Tiles(layer), Epochs(taps), Cache(taps)
        check(sides, xs)
        ours, slowest, theirs, plain, some = 0.0, 0.0, 0.0, 0.0, max(4, 16384 // l_max)
        for _ in range(PARTS):
            took, worst = seconds(tiles, xs, period // PARTS)
            ours, slowest = ours + took / period, max(slowest, worst)
            theirs += seconds(epochs, xs, epochs.epoch)[0] / (epochs.epoch * PARTS)
            plain += seconds(cache, xs, some)[0] / (some * PARTS)
    return {"engine": engine, "l_max": l_max, "us_a_step": 1e6 * ours, "slowest_ms": 1e3 * slowest, "over_cache": plain / ours,
            "over_epochs": theirs / ours, "mads": tiles.multiply_adds, "cache_mads": cache.multiply_adds, "epochs_mads": epochs.multiply_adds}


def main():
    save("decode_hyena", [run(engine, l_max) for engine in ("numpy", "torch:cpu", "mlx") for l_max in (4096, 32768)])


if __name__ == "__main__":
    main()
