"""Mamba's selective scan on a GPU: its kernels against the composite that they stand for: `python -m benchmarks.gpu_selective_scan FILE`.

Forward, and forward with the gradients in x, dt, A, B and C. Batch 8, 2,048 channels, 16 numbers of state a channel. The bytes are the
least that a scan has to move: inputs read once and outputs written once, and with gradients both again, and the inputs' gradients written.
Interleaved rounds, medians, CUDA events.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

import torch

import ember_ml as em
from benchmarks.timing import gpu_seconds

LENGTHS = (1024, 4096, 16384)
BATCH, CHANNELS, STATE = 8, 2048, 16
ROUNDS = 12

#: beyond it the composite's gradients take seconds each
LONGEST_GRADIENT = 4096


def measure(length: int, dtype, gradients: bool) -> dict:
    """Times of both forms, the difference of their results, and the bytes a second that the kernels move at least."""
    torch.manual_seed(0)
    x, dt = torch.randn(BATCH, length, CHANNELS, device="cuda", dtype=dtype), torch.rand(BATCH, length, CHANNELS, device="cuda") * 0.1
    A = -torch.rand(CHANNELS, STATE, device="cuda") * 8
    B, C = (torch.randn(BATCH, length, STATE, device="cuda") for _ in range(2))
    args = [em.from_native(t) for t in (x, dt, A, B, C)]
    chunk = max(1, (1 << 19) // (BATCH * CHANNELS * STATE))
    g = em.from_native(torch.randn_like(x))

    def form(**kw):
        if not gradients:
            return lambda: [em.ops.selective_scan(*args, **kw)[0]]
        step = em.grad(lambda *args: (em.ops.selective_scan(*args, **kw)[0] * g).sum(), tuple(range(5)))
        return lambda: step(*args)

    forms = {"kernel": (form(), 10), "composite": (form(chunk=chunk), 1)}
    pairs = zip(*([t.data.double() for t in fn()] for fn, _ in forms.values()))
    error = max(((got - want).norm() / want.norm()).item() for got, want in pairs)
    times: dict[str, list[float]] = {name: [] for name in forms}
    for i in range(ROUNDS):
        for name, (fn, calls) in forms.items():
            if name == "kernel" or i < 3:
                times[name].append(gpu_seconds(fn, calls))
    kernel, composite = (statistics.median(t[1:]) for t in times.values())
    read, written = x.nbytes + dt.nbytes + B.nbytes + C.nbytes, x.nbytes
    least = read + written if not gradients else 3 * read + 2 * written
    return {"L": length, "dtype": str(dtype), "gradients": gradients, "kernel ms": kernel * 1e3, "composite ms": composite * 1e3, "ratio": composite / kernel,
            "GB/s": least / kernel / 1e9, "relative error": error}


def main(path: str):
    rows = []
    for length in LENGTHS:
        for dtype in (torch.float32, torch.bfloat16):
            with torch.no_grad():
                rows.append(measure(length, dtype, False))
            if length <= LONGEST_GRADIENT:
                rows.append(measure(length, dtype, True))
    for row in rows:
        sys.stdout.write("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()) + "\n")
    Path(path).write_text(json.dumps({"benchmark": "gpu_selective_scan", "device": torch.cuda.get_device_name(0), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
