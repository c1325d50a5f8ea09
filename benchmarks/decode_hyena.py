"""Decoding a long convolution with an explicit filter: by epochs (the layer's step) against a plain cache of l_max inputs.

Both sides compute the same outputs of the same layer, a position at a time, on the same engine. `ratio` is plain / ours over a whole epoch,
the convolution that fills the next one included. multiply_adds is the count for one position of one channel.

    python -m benchmarks.decode_hyena
"""

from __future__ import annotations

import os
import time

os.environ.setdefault("MLX_ENABLE_TF32", "0")

import ember_ml as em                                      # noqa: E402
from benchmarks.timing import save                         # noqa: E402
from ember_ml.nn.layers.sequence_mixing import future_fill  # noqa: E402
from ember_ml.ops.shape import cut                         # noqa: E402
from ember_ml.registry import layers                       # noqa: E402

WIDTH = 64


def plain_step(layer, filters, past, x):
    """The same layer with all of its inputs kept: one product with the whole filter, in reverse."""
    past = em.ops.concat([cut(past, 1, past.shape[-1], axis=-1), em.ops.expand_dims(x, -1)], axis=-1)
    return layer._output((past * filters).sum(axis=-1) + layer.D * x), past


def run(engine: str, l_max: int) -> dict:
    with em.using(engine):
        layer = layers.instantiate("long_conv", key=em.random.key(0), d_input=WIDTH, l_max=l_max, activation="identity")
        xs = [em.random.normal(em.random.key(i), (1, WIDTH)) for i in range(8)]
        epoch, ours, theirs = future_fill.epoch_length(l_max), 0.0, 0.0
        state, past = layer.initial_state(1), em.zeros((1, WIDTH, l_max))
        filters = em.ops.flip(layer.filters(), axis=-1)
        for t in range(epoch):                             # interleaved, and a first epoch to warm up
            _, state = layer.step(xs[t % 8], state)
        for t in range(epoch):
            start = time.perf_counter()
            y, state = layer.step(xs[t % 8], state)
            y.backend.runtime.synchronize([leaf.data for leaf in em.tree.tensors((y, state))])
            middle = time.perf_counter()
            y, past = plain_step(layer, filters, past, xs[t % 8])
            y.backend.runtime.synchronize([y.data, past.data])
            ours, theirs = ours + middle - start, theirs + time.perf_counter() - middle
    return {"engine": engine, "l_max": l_max, "epoch": epoch, "ours_per_s": epoch / ours, "plain_per_s": epoch / theirs,
            "ratio": theirs / ours, "multiply_adds": future_fill.multiply_adds(l_max), "plain_multiply_adds": l_max}


def main():
    save("decode_hyena", [run(engine, l_max) for engine in ("numpy", "torch:cpu", "mlx") for l_max in (4096, 32768)])


if __name__ == "__main__":
    main()
