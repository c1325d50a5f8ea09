"""Mamba's selective scan on a GPU, forward: the kernel against the composite that it stands for: `python -m benchmarks.gpu_selective_scan FILE`.

Batch 8, 2,048 channels, 16 numbers of state a channel. The bytes are the least that a scan has to move: x, dt, B, C read once and y written once.
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


def measure(length: int, dtype) -> dict:
    """Times of both forms, their largest difference, and the kernel's share of the card's copying speed."""
    torch.manual_seed(0)
    x, dt = torch.randn(BATCH, length, CHANNELS, device="cuda", dtype=dtype), torch.rand(BATCH, length, CHANNELS, device="cuda") * 0.1
    A = -torch.rand(CHANNELS, STATE, device="cuda") * 8
    B, C = (torch.randn(BATCH, length, STATE, device="cuda") for _ in range(2))
    args = [em.from_native(t) for t in (x, dt, A, B, C)]
    chunk = max(1, (1 << 19) // (BATCH * CHANNELS * STATE))
    forms = {"kernel": (lambda: em.ops.selective_scan(*args), 10), "composite": (lambda: em.ops.selective_scan(*args, chunk=chunk), 1)}
    got, want = (fn()[0].data.double() for fn, _ in forms.values())
    error = ((got - want).norm() / want.norm()).item()
    times: dict[str, list[float]] = {name: [] for name in forms}
    for i in range(ROUNDS):
        for name, (fn, calls) in forms.items():
            if name == "kernel" or i < 3:
                times[name].append(gpu_seconds(fn, calls))
    kernel, composite = (statistics.median(t[1:]) for t in times.values())
    least = x.nbytes * 2 + dt.nbytes + B.nbytes + C.nbytes
    return {"L": length, "dtype": str(dtype), "kernel ms": kernel * 1e3, "composite ms": composite * 1e3, "ratio": composite / kernel,
            "GB/s": least / kernel / 1e9, "relative error": error}


def main(path: str):
    with torch.no_grad():
        rows = [measure(length, dtype) for length in LENGTHS for dtype in (torch.float32, torch.bfloat16)]
    for row in rows:
        sys.stdout.write("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()) + "\n")
    Path(path).write_text(json.dumps({"benchmark": "gpu_selective_scan", "device": torch.cuda.get_device_name(0), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
