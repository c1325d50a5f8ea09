"""The loss of a head a chunk of rows at a time against the loss of all its logits: time side by side, memory on MLX and torch.

    python -m benchmarks.head_loss

Peer: torch's own F.cross_entropy(F.linear(x, w)); MLX's own mx.losses on x @ w.T. Both with the gradients of x and w, in float32.
Memory: on MLX the allocator's peak above the inputs; on torch the largest tensor that autograd's profiler sees is the peer's logits, so
the peak is that of torch's own CPU profiler.
"""

from __future__ import annotations

import numpy as np

import ember_ml as em
from benchmarks.timing import compare, save
from ember_ml.nn import losses

ROWS, WIDTH, CLASSES = 512, 64, 8192


def inputs():
    rng = np.random.default_rng(0)
    return (rng.standard_normal((ROWS, WIDTH)).astype(np.float32), (rng.standard_normal((CLASSES, WIDTH)) * 0.05).astype(np.float32),
            rng.integers(0, CLASSES, ROWS).astype(np.int32))


def ours(x, w, y, chunk):
    return em.value_and_grad(lambda x, w: losses.linear_cross_entropy(x, w, y, chunk=chunk), (0, 1))(x, w)


def on_torch(chunk: int) -> dict:
    import torch
    import torch.nn.functional as F
    from torch.profiler import ProfilerActivity, profile
    torch.set_num_threads(1)
    a, b, c = inputs()
    x, w, y = (torch.from_numpy(v) for v in (a, b, c.astype(np.int64)))
    x.requires_grad_(), w.requires_grad_()
    with em.using("torch:cpu"):
        given = [em.tensor(v) for v in (a, b, c)]

    def peer():
        return torch.autograd.grad(F.cross_entropy(F.linear(x, w), y), (x, w))

    def peak(fn):
        """Bytes of torch's CPU allocations that are alive at once."""
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            fn()
        alive = most = 0
        for event in seen.profiler.kineto_results.events():
            if event.name() == "[memory]":
                alive += event.nbytes()
                most = max(most, alive)
        return most

    times = compare(lambda: ours(*given, chunk), peer, rounds=7, warmup=1)
    return {"engine": "torch", "chunk": chunk, **times, "ours_MiB": peak(lambda: ours(*given, chunk)) / 2 ** 20, "peer_MiB": peak(peer) / 2 ** 20}


def on_mlx(chunk: int) -> dict:
    import mlx.core as mx
    import mlx.nn as mlx_nn
    a, b, c = inputs()
    x, w, y = (mx.array(v) for v in (a, b, c))
    with em.using("mlx"):
        given = [em.tensor(v) for v in (a, b, c)]
    both = mx.value_and_grad(lambda x, w: mlx_nn.losses.cross_entropy(x @ w.T, y, reduction="mean"), argnums=(0, 1))

    def peer():
        mx.eval(both(x, w))

    def mine():
        value, grads = ours(*given, chunk)
        mx.eval(value.data, [g.data for g in grads])

    def peak(fn):
        mx.clear_cache()
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        fn()
        return mx.get_peak_memory() - before

    times = compare(mine, peer, rounds=3, warmup=1)
    return {"engine": "mlx", "chunk": chunk, **times, "ours_MiB": peak(mine) / 2 ** 20, "peer_MiB": peak(peer) / 2 ** 20}


def main():
    """Times, ratios and peaks of memory for two sizes of chunk."""
    rows = [{**row, "memory_ratio": row["ours_MiB"] / row["peer_MiB"]} for row in (*(on_torch(n) for n in (256, 64)), *(on_mlx(n) for n in (256, 64)))]
    save("head_loss", rows)


if __name__ == "__main__":
    main()
