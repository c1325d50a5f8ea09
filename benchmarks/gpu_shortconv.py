"""Convolutions of few taps on a GPU: `python -m benchmarks.gpu_shortconv FILE`.

First the short convolution with bias and silu, as Mamba has it, (B, L, D) in and out, against torch's conv1d and silu on the same memory, forward and
with gradients. Then the long convolution's two forms at the same filters, gated, which says whether `ember_ml.kernels.fftconv_form.DIRECT` is
where they cross. Interleaved rounds, medians, CUDA events.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

import ember_ml as em
from benchmarks.timing import gpu_seconds
from ember_ml.kernels import fftconv as plans
from ember_ml.kernels import shortconv

BATCH, LENGTH, CHANNELS = 8, 4096, 2048
ROUNDS = 12


def compared(forms: dict, row: dict) -> dict:
    """`row` with the milliseconds of each form, the second's over the first's, and the largest difference of their results."""
    pairs = zip(*([t.double() for t in fn()] for fn in forms.values()))
    error = max(((got - want).norm() / want.norm()).item() for got, want in pairs)
    times = {name: [] for name in forms}
    for _ in range(ROUNDS):
        for name, fn in forms.items():
            times[name].append(gpu_seconds(fn, 10))
    medians = {name: statistics.median(t[1:]) for name, t in times.items()}
    first, second = medians.values()
    return {**row, **{f"{name} ms": t * 1e3 for name, t in medians.items()}, "ratio": second / first, "relative error": error}


def short(taps: int, dtype, gradients: bool) -> dict:
    """short_conv with its silu against conv1d, and the bytes a second that the kernels move at least."""
    x, g = (torch.randn(BATCH, LENGTH, CHANNELS, device="cuda", dtype=dtype) for _ in range(2))
    weight, bias = torch.randn(CHANNELS, taps, device="cuda", dtype=dtype), torch.randn(CHANNELS, device="cuda", dtype=dtype)
    args = [t.requires_grad_(gradients) for t in (x, weight, bias)]

    def ours(x, weight, bias):
        given = (em.from_native(t) for t in (x.mT, weight, bias))
        return em.ops.short_conv(*given, silu=True, channels_last=True).data

    def theirs(x, weight, bias):
        return F.silu(F.conv1d(F.pad(x.mT, (taps - 1, 0)), weight.unsqueeze(1), bias, groups=CHANNELS)).mT

    def form(fn):
        return (lambda: torch.autograd.grad(fn(*args), args, g)) if gradients else (lambda: [fn(*args)])

    row = {"taps": taps, "dtype": str(dtype), "gradients": gradients}
    row = compared({"kernel": form(ours), "torch": form(theirs)}, row)
    return {**row, "GB/s": x.nbytes * (5 if gradients else 2) / row["kernel ms"] / 1e6}


def long(taps: int, length: int, dtype) -> dict:
    """fftconv with gates, directly and by its transform."""
    rows = (BATCH, CHANNELS * LENGTH // length, length)
    u, v, q = (em.from_native(torch.randn(rows, device="cuda", dtype=dtype)) for _ in range(3))
    k = em.from_native(torch.randn(rows[1], taps, device="cuda"))

    def form(widest):
        def run():
            before = plans.DIRECT, shortconv.LONGEST
            plans.DIRECT = shortconv.LONGEST = widest
            try:
                return [em.ops.fftconv(u, k, v=v, q=q).data]
            finally:
                plans.DIRECT, shortconv.LONGEST = before
        return run

    return compared({"direct": form(taps), "transform": form(0)}, {"taps": taps, "L": length, "dtype": str(dtype)})


def main(path: str):
    rows = [short(taps, dtype, gradients) for taps in (4, 7) for dtype in (torch.float32, torch.bfloat16) for gradients in (False, True)]
    with torch.no_grad():
        rows += [long(taps, length, dtype) for length in (4096, 65536) for taps in (8, 16, 32, 48, 64)
                 for dtype in (torch.float32, torch.bfloat16)]
    for row in rows:
        sys.stdout.write("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()) + "\n")
    Path(path).write_text(json.dumps({"benchmark": "gpu_shortconv", "device": torch.cuda.get_device_name(0), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
