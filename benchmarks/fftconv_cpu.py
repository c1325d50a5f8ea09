"""The long convolution on a CPU against the formula as a user writes it on the same engine, filter spectrum at hand on both sides.

    irfft(rfft(u, 2L) * rfft(k, 2L))[:L]          (mlx: inside mx.compile)

B H = 256 rows in float32. `ratio` is the median of the pairwise ratios peer / ours: above 1, Ember is faster. `best` is the ratio of the
shortest times, which work of others on the machine touches least; memory is what a call adds at its peak, of all allocators.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import statistics
import time
from pathlib import Path

os.environ.setdefault("MLX_ENABLE_TF32", "0")

import ember_ml as em                                      # noqa: E402
from benchmarks.timing import save                         # noqa: E402

ENGINES = ("numpy", "torch", "mlx")
BATCH, HEADS = 4, 64
LENGTHS = (512, 2048, 8192, 32768, 131072)
TARGETS = {("numpy", 2048): 2.2, ("numpy", 8192): 2.5, ("numpy", 32768): 2.5, ("numpy", 131072): 2.0, ("torch", 512): 1.0,
           ("torch", 2048): 1.0, ("torch", 8192): 2.5, ("torch", 32768): 2.5, ("torch", 131072): 2.0}
#: HyenaDNA's lengths and the powers of two that they must not take much longer than
NEAR = {1026: 1024, 32770: 32768}


def race(ours, peer, numbers: int) -> dict[str, float]:
    """Times both in turn, more often where they are short."""
    rounds, a, b = max(3, min(21, (1 << 26) // numbers)), [], []
    ours(), peer()
    for _ in range(rounds):
        for fn, times in ((ours, a), (peer, b)):
            start = time.perf_counter()
            fn()
            times.append(time.perf_counter() - start)
    return {"ours_ms": 1e3 * statistics.median(a), "plain_ms": 1e3 * statistics.median(b),
            "ratio": statistics.median(y / x for x, y in zip(a, b)), "best": min(b) / min(a)}


def peak(engine: str, fn) -> float:
    """MiB that a call adds to the process's resident memory at its peak (Linux)."""
    status = Path("/proc/self/status")
    if not status.exists():
        return float("nan")

    def kib(name):
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(name))
    fn()
    if engine == "mlx":                                     # what was freed goes back, or it would be used again unseen
        import mlx.core as mx
        mx.clear_cache()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")           # the high-water mark falls to what is resident now
    before = kib("VmRSS")
    fn()
    return (kib("VmHWM") - before) / 2 ** 10


def inputs(length: int):
    u = em.random.normal(em.random.key(0), (BATCH, HEADS, length))
    k = em.random.normal(em.random.key(1), (HEADS, length))
    em.autodiff.tree.map(lambda t: t.backend.runtime.synchronize([t.data]), [u, k])
    return u, k, em.ops.prepare_filter(k)


def plain(engine: str, u, k, length: int):
    """The formula in the engine's own functions, as a function of nothing."""
    if engine == "mlx":
        import mlx.core as mx
        spectrum = mx.fft.rfft(k, n=2 * length)
        fn = mx.compile(lambda u, s: mx.fft.irfft(mx.fft.rfft(u, n=2 * length) * s, n=2 * length)[..., :length])
        return lambda: mx.eval(fn(u, spectrum))
    if engine == "numpy":
        import numpy as np
        fft, spectrum = np.fft, np.fft.rfft(k, 2 * length)
    else:
        import torch
        fft, spectrum = torch.fft, torch.fft.rfft(k, 2 * length)
    return lambda: fft.irfft(fft.rfft(u, 2 * length) * spectrum, 2 * length)[..., :length]


def forward(engine: str, length: int) -> dict:
    u, k, prepared = inputs(length)
    peer = plain(engine, u.data, k.data, length)

    def ours():
        u.backend.runtime.synchronize([em.ops.fftconv(u, prepared).data])
    row = {"engine": engine, "what": "forward", "length": length, **race(ours, peer, u.size)}
    row["target"] = TARGETS.get((engine, length), 1.0 if engine == "mlx" else "")
    mine, theirs = peak(engine, ours), peak(engine, peer)
    return {**row, "ours_MiB": mine, "plain_MiB": theirs, "memory": mine / theirs}


def near_power_of_two(engine: str, length: int) -> dict:
    """Time of 2^j + 2 over that of 2^j, ours; the peer's is given for itself."""
    (u, k, prepared), (v, _, other) = inputs(length), inputs(NEAR[length])

    def run(x, f):
        return lambda: x.backend.runtime.synchronize([em.ops.fftconv(x, f).data])
    row = race(run(u, prepared), run(v, other), u.size)
    peer = race(run(u, prepared), plain(engine, u.data, k.data, length), u.size)
    return {"engine": engine, "what": f"forward / {NEAR[length]}", "length": length, "ours_ms": row["ours_ms"],
            "plain_ms": peer["plain_ms"], "ratio": 1.0 / row["ratio"], "best": 1.0 / row["best"], "target": "<= 1.15"}


def backward(length: int) -> dict:
    """torch, forward and all gradients."""
    import torch
    u, k, _ = inputs(length)
    g = em.random.normal(em.random.key(2), u.shape)

    def loss(u, k):
        return (em.ops.fftconv(u, k) * g).sum()
    both = em.value_and_grad(loss, (0, 1))

    def peer():
        x, f = u.data.detach().requires_grad_(), k.data.detach().requires_grad_()
        y = torch.fft.irfft(torch.fft.rfft(x, 2 * length) * torch.fft.rfft(f, 2 * length), 2 * length)[..., :length]
        torch.autograd.grad((y * g.data).sum(), (x, f))
    row = {"engine": "torch", "what": "forward+backward", "length": length, **race(lambda: both(u, k), peer, u.size)}
    mine, theirs = peak("torch", lambda: both(u, k)), peak("torch", peer)
    return {**row, "target": 2.5 if length == 32768 else "", "ours_MiB": mine, "plain_MiB": theirs, "memory": mine / theirs}


def main(engines=ENGINES):
    rows = []
    for engine in engines:
        with em.using(f"{engine}:cpu" if engine == "torch" else engine):
            rows += [forward(engine, length) for length in LENGTHS]
            rows += [near_power_of_two(engine, length) for length in NEAR]
            if engine == "torch":
                rows += [backward(length) for length in (2048, 8192, 32768)]
    save("fftconv_cpu", rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fftconv_cpu", description=__doc__.partition("\n")[0])
    parser.add_argument("engines", nargs="*", metavar="engine", help=f"{', '.join(ENGINES)}; all of them if none is named")
    chosen = parser.parse_args().engines
    unknown = [e for e in chosen if e not in ENGINES]
    if unknown:
        parser.error(f"expected engines among {', '.join(ENGINES)}, got {', '.join(unknown)}")
    main(chosen or ENGINES)
