"""The long convolution on a CPU against the formula as a user writes it on the same engine, filter spectrum at hand on both sides.

    plain     irfft(rfft(u, 2L) * rfft(k, 2L))[:L]
    gated     x = u * v, (irfft(rfft(x, 2L) * rfft(k, 2L))[:L] + D * x) * q, with u, v and q channels of one array

B H = 256 rows in float32; mlx's formula inside mx.compile. Protocol: a process an engine, lengths from short to long, each result freed before
the next call, and nothing done to the allocator, which is part of what a user gets: memory that it gave back to the operating
system comes again by page faults, and `faults` counts those of a call (the median).

ratio     the median of the pairwise ratios peer / ours, both sides in turn, so that no side finds just what it left itself, as between
          the other layers of a model; above 1, Ember is faster
best      the ratio of the shortest of these times, which work of others on the machine touches least
alone     the ratio of the medians with each side in a loop of its own, where the allocator may have all of its memory at hand
memory    what a call adds at its peak, of all allocators; what ours keeps between calls (torch: at most 4 MiB a thread) is not in it
"""

from __future__ import annotations

import argparse
import ctypes
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("MLX_ENABLE_TF32", "0")

import ember_ml as em                                      # noqa: E402
from benchmarks.timing import save                         # noqa: E402

ENGINES = ("numpy", "torch", "mlx")
BATCH, HEADS = 4, 64
LENGTHS = (512, 1024, 2048, 8192, 32768, 131072)
TARGETS = {("numpy", 2048): 2.2, ("numpy", 8192): 2.5, ("numpy", 32768): 2.5, ("numpy", 131072): 2.0, ("torch", 512): 1.0,
           ("torch", 1024): 1.0, ("torch", 2048): 1.0, ("torch", 8192): 2.5, ("torch", 32768): 2.5, ("torch", 131072): 2.0}
#: lengths that are measured with gates, too; the last two with gradients
GATED = (512, 2048, 8192, 32768)
#: HyenaDNA's lengths and the powers of two that they must not take much longer than
NEAR = {1026: 1024, 32770: 32768}


def race(ours, peer, numbers: int) -> dict[str, float]:
    """Times both in turn, more often where they are short."""
    rounds, a, b, faults = max(5, min(101, (1 << 25) // numbers)), [], [], ([], [])
    for _ in range(2):
        ours(), peer()
    for _ in range(rounds):
        for fn, times, found in ((ours, a, faults[0]), (peer, b, faults[1])):
            before, start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
            fn()
            times.append(time.perf_counter() - start)
            found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return {"ours_ms": 1e3 * statistics.median(a), "plain_ms": 1e3 * statistics.median(b),
            "ratio": statistics.median(y / x for x, y in zip(a, b)), "best": min(b) / min(a),
            "ours_faults": statistics.median(faults[0]), "plain_faults": statistics.median(faults[1])}


def alone(ours, peer, numbers: int) -> float:
    """The ratio of the medians of each side in a loop of its own."""
    medians = []
    for fn in (ours, peer):
        times = []
        for _ in range(2 + max(3, min(51, (1 << 24) // numbers))):
            start = time.perf_counter()
            fn()
            times.append(time.perf_counter() - start)
        medians.append(statistics.median(times[2:]))
    return medians[1] / medians[0]


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


def gates(length: int):
    """u, v and q, a third each of the channels of one array, and the skip."""
    whole = em.random.normal(em.random.key(3), (BATCH, 3 * HEADS, length))
    D = em.random.normal(em.random.key(4), (HEADS,))
    found = [whole[:, i * HEADS:(i + 1) * HEADS] for i in range(3)]
    whole.backend.runtime.synchronize([t.data for t in (*found, D)])
    return *found, D


def plain(engine: str, u, k, length: int, gated=None):
    """The formula in the engine's own functions, as a function of nothing. `gated`: (v, q, D)."""
    if engine == "mlx":
        import mlx.core as mx
        fft = mx.fft
    elif engine == "numpy":
        import numpy as np
        fft = np.fft
    else:
        import torch
        fft = torch.fft
    padded = {"n": 2 * length}

    def formula(u, s, v=None, q=None, D=None):
        x = u if v is None else u * v
        y = fft.irfft(fft.rfft(x, **padded) * s, **padded)[..., :length]
        return y if v is None else (y + D[:, None] * x) * q
    spectrum, rest = fft.rfft(k, **padded), gated or ()
    if engine == "mlx":
        compiled = mx.compile(formula)
        return lambda: mx.eval(compiled(u, spectrum, *rest))
    return lambda: formula(u, spectrum, *rest)


def forward(engine: str, length: int, gated: bool = False, step: bool = False) -> dict:
    """With `step`, ours inside of `em.compile`, too."""
    u, k, prepared = inputs(length)
    v = q = D = None
    if gated:
        u, v, q, D = gates(length)
    peer = plain(engine, u.data, k.data, length, (v.data, q.data, D.data) if gated else None)

    run = em.compile(lambda u: em.ops.fftconv(u, prepared)) if step else lambda u: em.ops.fftconv(u, prepared, D, v=v, q=q)

    def ours():
        u.backend.runtime.synchronize([run(u).data])
    row = {"engine": engine, "what": "gated" if gated else "compiled step" if step else "forward", "length": length, **race(ours, peer, u.size),
           "alone": alone(ours, peer, u.size)}
    row["target"] = "" if gated else TARGETS.get((engine, length), 1.0 if engine == "mlx" else "")
    if gated:
        row["over_ungated"] = race(ours, lambda: u.backend.runtime.synchronize([em.ops.fftconv(u, prepared).data]), u.size)["ratio"] ** -1
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


def backward(length: int, gated: bool = False) -> dict:
    """torch, forward and all gradients."""
    import torch
    u, k, _ = inputs(length)
    g, given = em.random.normal(em.random.key(2), u.shape), (u, k)
    if gated:
        u, v, q, D = gates(length)
        given = u, k, v, q, D

    def loss(u, k, v=None, q=None, D=None):
        return (em.ops.fftconv(u, k, D, v=v, q=q) * g).sum()
    both = em.value_and_grad(loss, tuple(range(len(given))))

    def peer():
        u, k, *rest = leaves = [t.data.detach().requires_grad_() for t in given]
        x = u * rest[0] if gated else u
        y = torch.fft.irfft(torch.fft.rfft(x, 2 * length) * torch.fft.rfft(k, 2 * length), 2 * length)[..., :length]
        y = (y + rest[2][:, None] * x) * rest[1] if gated else y
        torch.autograd.grad((y * g.data).sum(), leaves)

    def ours():
        both(*given)
    row = {"engine": "torch", "what": "gated forward+backward" if gated else "forward+backward", "length": length, **race(ours, peer, u.size),
           "alone": alone(ours, peer, u.size)}
    mine, theirs = peak("torch", ours), peak("torch", peer)
    return {**row, "target": 2.5 if length == 32768 and not gated else "", "ours_MiB": mine, "plain_MiB": theirs, "memory": mine / theirs}


def measure(engine: str) -> list[dict]:
    with em.using(f"{engine}:cpu" if engine == "torch" else engine):
        rows = [forward(engine, length) for length in LENGTHS]
        rows += [near_power_of_two(engine, length) for length in NEAR]
        rows += [forward(engine, length, gated=True) for length in GATED]
        if engine == "torch":
            rows += [backward(length, gated) for gated in (False, True) for length in GATED[2:]]
        if engine == "mlx":
            rows += [forward(engine, length, step=True) for length in GATED]
    return rows


def main(engines=ENGINES):
    for engine in engines:
        if len(engines) > 1:
            subprocess.run([sys.executable, "-m", "benchmarks.fftconv_cpu", engine], check=True)
        else:
            save(f"fftconv_cpu-{engine}", measure(engine))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fftconv_cpu", description=__doc__.partition("\n")[0])
    parser.add_argument("engines", nargs="*", metavar="engine", help=f"{', '.join(ENGINES)}; all of them if none is named")
    chosen = parser.parse_args().engines
    unknown = [e for e in chosen if e not in ENGINES]
    if unknown:
        parser.error(f"expected engines among {', '.join(ENGINES)}, got {', '.join(unknown)}")
    main(chosen or ENGINES)
