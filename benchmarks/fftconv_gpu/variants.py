"""The plans of the kernels beside each other: sizes of blocks, points of a thread, workspaces."""

from __future__ import annotations

import statistics
from dataclasses import replace

import torch

from benchmarks.fftconv_gpu import kernels
from benchmarks.fftconv_gpu.cases import HEADS, inputs, pair
from benchmarks.fftconv_gpu.measure import free, measure, median, native, say
from ember_ml.kernels import fftconv_plan as plans


def variants() -> dict[int, tuple[list, list]]:
    """Plans to compare, for forward and backward, by log2 of M. All of one list share log_points' spectrum only if equal."""
    forward = {
        10: [(4, 2, 4), (4, 2, 6), (5, 4, 4)],
        13: [(4, 1, 2), (5, 1, 2)],
        14: [(5, 1, 1), (4, 1, 1)],
    }
    backward = {
        10: [(4, 2, 4, 2), (5, 4, 4, 0)],
        12: [(4, 1, 2, 2), (4, 1, 3, 0)],
        13: [(4, 1, 1, 2), (5, 1, 1, 2), (5, 1, 2, 0)],
        14: [(5, 1, 1, 0), (4, 1, 1, 0)],
    }
    return {m: ([plans.CudaPlan(m, p, r, b) for p, r, b in forward.get(m, [])],
                [plans.CudaPlan(m, p, r, b, k) for p, r, b, k in backward.get(m, [])])
            for m in sorted({*forward, *backward})}


def by_points(forward: list, backward: list) -> dict[int, plans.CudaPlan]:
    """A plan for each number of points, on which the order of a spectrum depends."""
    return {p.log_points: p for p in (*backward, *forward)}


def compare_plans() -> list[dict]:
    """Forward plain and gated, backward gated, float32."""
    rows = []
    for m, (forward, backward) in variants().items():
        length = 1 << m
        heads = HEADS
        batch = max(2, min(16, (1 << 26) // (heads * length)))
        data = inputs(batch, heads, length, torch.float32, True, 2)
        cu = [{n: native(x) for n, x in d.items() if n != "k_f"} for d in data]
        spectra = {n: [kernels.spectrum(p, d["k"], None) for d in cu] for n, p in by_points(forward, backward).items()}
        functions = {}
        for p in forward:
            functions["plain", p] = lambda i, p=p: kernels.forward(p, cu[i % 2]["u"], spectra[p.log_points][i % 2])
            functions["gated", p] = lambda i, p=p: kernels.forward(
                p, cu[i % 2]["u"], spectra[p.log_points][i % 2], v=cu[i % 2]["v"], q=cu[i % 2]["q"])
        for p in backward:
            functions["backward", p] = lambda i, p=p: kernels.backward(
                p, cu[i % 2]["g"], cu[i % 2]["u"], spectra[p.log_points][i % 2], length, v=cu[i % 2]["v"],
                q=cu[i % 2]["q"])
        for name, fn in list(functions.items()):
            try:
                fn(0)
                torch.cuda.synchronize()
            except Exception as error:                     # a plan that does not fit the chip is a result too
                say(f"{name}: {type(error).__name__}: {str(error).splitlines()[0][:120]}")
                del functions[name]
        times = measure(functions, 5)
        for (kind, p), t in times.items():
            rows.append({"kind": kind, "log_m": m, "points": p.log_points, "rows": p.rows, "blocks": p.blocks,
                         "keep": p.keep, "ms": statistics.median(t),
                         "ns_per_point": statistics.median(t) * 1e6 / (batch * heads * length)})
        del data, cu, spectra, functions
        free()
    return rows


def compare_workspaces() -> list[dict]:
    """Three passes with workspaces that fit the cache and that do not; forward, plain, float32."""
    rows = []
    for batch, heads, length in ((4, HEADS, 32768), (1, 256, 1 << 20)):
        plan, _ = pair(length, length)
        d = inputs(batch, heads, length, torch.float32, False, 1)[0]
        u, f = native(d["u"]), kernels.spectrum(plan, native(d["k"]), None)
        sizes = [1 << n for n in (25, 28, 30, 32)]
        times = measure({size: lambda i, size=size: kernels.forward(replace(plan, workspace=size), u, f) for size in sizes}, 3)
        rows += [{"L": length, "rows": batch * heads, "workspace_MB": size >> 20, "ms": median(times, size)} for size in sizes]
        del d, u, f
        free()
    return rows
