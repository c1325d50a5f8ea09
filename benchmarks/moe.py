"""Experts of a mixture on the CPU: Ember against a hand-written sorted loop, torch's grouped product, transformers and mlx-lm.

Gated perceptrons of d = 256, ff = 1024, k = 2, float32, routing given; forward, and forward with the gradients of input, weights of
the routing and both matrices. All sides compute the same from the same inputs (checked). One thread; CPU time of the process,
interleaved, medians of pairwise ratios. Ratios are peer / Ember: above 1 Ember is faster. peak: how far the process grows.

    python -m benchmarks.moe numpy torch mlx
    LD_PRELOAD=/usr/lib/x86_64-linux-gnu/openblas-pthread/libopenblas.so.0 python -m benchmarks.moe mlx

The MLX wheel for Linux has a reference BLAS of its own. The second line puts OpenBLAS (Debian's libopenblas0-pthread) in its place, as
Accelerate has on a Mac, and keeps its results beside the others (moe-mlx-openblas); the largest sizes run with it alone.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"
os.environ.setdefault("MLX_ENABLE_TF32", "0")

import statistics
import time
from pathlib import Path

import numpy as np

import ember_ml as em
from benchmarks.timing import save
from ember_ml import ops

WIDTH, INNER, SLOTS = 256, 1024, 2
SIZES = [(tokens, experts) for tokens in (256, 2048, 8192) for experts in (8, 64)]


def problem(tokens: int, experts: int) -> dict[str, np.ndarray]:
    """x, ids, weights, w1, w2 and the output's gradient g; a mildly skewed load."""
    rng = np.random.default_rng([tokens, experts])
    logits = rng.normal(size=(tokens, experts)) + 0.5 * rng.normal(size=experts)
    ids = np.argsort(-logits, axis=1, kind="stable")[:, :SLOTS].astype(np.int32)
    p = np.exp(np.take_along_axis(logits, ids, 1))
    arrays = {"x": rng.normal(size=(tokens, WIDTH)), "weights": p / p.sum(1, keepdims=True),
              "w1": rng.normal(size=(experts, 2 * INNER, WIDTH)) / 16, "w2": rng.normal(size=(experts, WIDTH, INNER)) / 32,
              "g": rng.normal(size=(tokens, WIDTH))}
    return {"ids": ids, **{n: a.astype(np.float32) for n, a in arrays.items()}}


def ember(p, engine: str):
    """(forward, gradients) on an engine; both return native arrays, computed."""
    with em.using(engine):
        t = {n: em.tensor(a) for n, a in p.items()}
    leaves, experts = tuple(t[n] for n in ("x", "weights", "w1", "w2")), p["w1"].shape[0]
    runtime = leaves[0].backend.runtime

    def y(x, weights, w1, w2):
        return ops.moe_mlp(x, weights, ops.moe_plan(t["ids"], experts), w1, w2)

    both = em.value_and_grad(lambda *leaves: (y(*leaves) * t["g"]).sum(), (0, 1, 2, 3))

    def done(*tensors):
        natives = [x.data for x in tensors]
        runtime.synchronize(natives)
        return natives
    return lambda: done(y(*leaves)), lambda: done(*both(*leaves)[1])


def numpy_loop(p):
    """What one writes by hand in NumPy: sort by expert, a loop, gradients by hand."""
    ids, x, weights, w1, w2, g = (p[n] for n in ("ids", "x", "weights", "w1", "w2", "g"))
    experts, flat = len(w1), p["ids"].reshape(-1)

    def plan():
        order = np.argsort(flat.astype(np.uint16), kind="stable")
        inverse = np.empty_like(order)
        inverse[order] = np.arange(order.size)
        return order, inverse.reshape(ids.shape), np.concatenate([[0], np.cumsum(np.bincount(flat, minlength=experts))])

    def forward(keep=False):
        order, inverse, ends = plan()
        y = np.empty((flat.size, WIDTH), np.float32)
        kept = []
        for e in range(experts):
            lo, hi = ends[e], ends[e + 1]
            xs = x[order[lo:hi] // SLOTS]
            h = xs @ w1[e].T
            gate, up = h[:, :INNER], h[:, INNER:]
            s = 1.0 / (1.0 + np.exp(-gate))
            a = gate * s * up
            np.matmul(a, w2[e].T, out=y[lo:hi])
            if keep:
                kept.append((xs, gate, up, s, a))
        out = (weights[:, None, :] @ y[inverse])[:, 0]
        return (out, y, order, inverse, ends, kept) if keep else [out]

    def gradients():
        _, y, order, inverse, ends, kept = forward(keep=True)
        d_weights = np.einsum("td,tkd->tk", g, y[inverse])
        d_w1, d_w2, d_rows = np.empty_like(w1), np.empty_like(w2), np.empty((flat.size, WIDTH), np.float32)
        row_weights = weights.reshape(-1)[order]
        for e in range(experts):
            lo, hi = ends[e], ends[e + 1]
            xs, gate, up, s, a = kept[e]
            gy = g[order[lo:hi] // SLOTS] * row_weights[lo:hi, None]
            np.matmul(gy.T, a, out=d_w2[e])
            da = gy @ w2[e]
            d_h = np.concatenate([da * up * s * (1.0 + gate * (1.0 - s)), da * gate * s], axis=1)
            np.matmul(d_h.T, xs, out=d_w1[e])
            np.matmul(d_h, w1[e], out=d_rows[lo:hi])
        return [d_rows[inverse].sum(1), d_weights, d_w1, d_w2]
    return forward, gradients


def torch_peers(p):
    """name -> (forward, gradients): grouped_mm by hand, and transformers' Mixtral experts in two implementations."""
    import torch
    import torch.nn.functional as F
    torch.set_num_threads(1)
    t = {n: torch.from_numpy(a) for n, a in p.items()}
    experts = len(p["w1"])

    def by_hand(x, weights, w1, w2):
        flat = t["ids"].reshape(-1)
        order = torch.argsort(flat, stable=True)
        offsets = torch.cumsum(torch.bincount(flat, minlength=experts), 0).to(torch.int32)
        gate, up = F.grouped_mm(x[order // SLOTS], w1.transpose(1, 2), offs=offsets).chunk(2, -1)
        y = F.grouped_mm(F.silu(gate) * up, w2.transpose(1, 2), offs=offsets)
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(order.numel())
        return (y[inverse].view(*weights.shape, -1) * weights[..., None]).sum(1)

    peers = {"grouped_mm by hand": by_hand}
    try:
        from transformers.models.mixtral.configuration_mixtral import MixtralConfig
        from transformers.models.mixtral.modeling_mixtral import MixtralExperts
        for implementation in ("eager", "grouped_mm"):
            config = MixtralConfig(hidden_size=WIDTH, intermediate_size=INNER, num_local_experts=experts, num_experts_per_tok=SLOTS)
            config._experts_implementation = implementation
            module = MixtralExperts(config)
            peers[f"transformers {implementation}"] = lambda x, weights, w1, w2, module=module: torch.func.functional_call(
                module, {"gate_up_proj": w1, "down_proj": w2}, (x, t["ids"].long(), weights))
    except ImportError as error:
        sys.stdout.write(f"without transformers: {error}\n")

    def pair(run):
        given = [t[n] for n in ("x", "weights", "w1", "w2")]

        def forward():
            with torch.no_grad():
                return [run(*given)]

        def gradients():
            leaves = [g.detach().requires_grad_() for g in given]
            return list(torch.autograd.grad(run(*leaves), leaves, t["g"]))
        return forward, gradients
    return {name: pair(run) for name, run in peers.items()}


def mlx_peer(p):
    """mlx-lm's SwitchGLU and the weighted sum that its models put after it."""
    import mlx.core as mx
    from mlx_lm.models.switch_layers import SwitchGLU
    t = {n: mx.array(a) for n, a in p.items()}
    module = SwitchGLU(WIDTH, INNER, len(p["w1"]))

    def run(x, weights, w1, w2):
        module.gate_proj.weight, module.up_proj.weight, module.down_proj.weight = w1[:, :INNER], w1[:, INNER:], w2
        return (module(x, t["ids"].astype(mx.uint32)) * weights[..., None]).sum(-2)

    given = [t[n] for n in ("x", "weights", "w1", "w2")]
    both = mx.value_and_grad(lambda *leaves: (run(*leaves) * t["g"]).sum(), (0, 1, 2, 3))

    def done(arrays):
        mx.eval(arrays)
        return arrays
    return lambda: done([run(*given)]), lambda: done(list(both(*given)[1]))


def peak(fn) -> float:
    """MiB that the process grows by in a call, at most, its result included: what was freed before is given back first."""
    if "mlx.core" in sys.modules:
        sys.modules["mlx.core"].clear_cache()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")          # the largest resident size starts anew

    def status(key):
        return int(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key)).split()[1])
    before = status("VmRSS")
    fn()
    return (status("VmHWM") - before) / 1024


def turns(calls: dict, seconds: float) -> dict[str, list[float]]:
    """CPU times of each call, in turn, for about so many seconds but at least three rounds."""
    times = {name: [] for name in calls}
    for call in calls.values():
        call()
    end = time.perf_counter() + seconds
    while len(next(iter(times.values()))) < 3 or (time.perf_counter() < end and len(next(iter(times.values()))) < 15):
        for name, call in calls.items():
            start = time.process_time()
            call()
            times[name].append(time.process_time() - start)
    return times


def measure(engine: str, sizes) -> list[dict]:
    rows, single = [], {}
    if engine == "torch":
        import torch
        torch.set_num_threads(1)
    for tokens, experts in sizes:
        p = problem(tokens, experts)
        sides = {"ember": ember(p, engine)}
        sides |= {"sorted loop": numpy_loop(p)} if engine == "numpy" else {} if engine == "torch" else {"SwitchGLU": mlx_peer(p)}
        sides |= torch_peers(p) if engine == "torch" else {}
        for which, what in enumerate(("forward", "forward and backward")):
            calls = {name: pair[which] for name, pair in sides.items()}
            want = [np.asarray(a) for a in calls["ember"]()]
            for name in list(calls):
                for a, b in zip(want, calls[name]()):
                    assert np.abs(a - np.asarray(b)).max() < 1e-4 * np.abs(a).max(), f"{name} computes something else"
            times = turns(calls, 3.0)
            memory = {name: peak(call) for name, call in calls.items()}
            single[tokens, experts, what] = statistics.median(times["ember"])
            for name in calls:
                if name == "ember":
                    continue
                rows.append({"engine": engine, "T": tokens, "E": experts, "what": what, "peer": name,
                             "ember_ms": single[tokens, experts, what] * 1e3, "peer_ms": statistics.median(times[name]) * 1e3,
                             "ratio": statistics.median(b / a for a, b in zip(times["ember"], times[name])),
                             "ember_peak_MiB": memory["ember"], "peer_peak_MiB": memory[name]})
                sys.stdout.write("  ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in rows[-1].values()) + "\n")
                sys.stdout.flush()
    for what in ("forward", "forward and backward"):
        if (8192, 64, what) in single and (8192, 8, what) in single:
            rows.append({"engine": engine, "T": 8192, "E": 64, "what": what, "peer": "ember with E = 8",
                         "ember_ms": single[8192, 64, what] * 1e3, "peer_ms": single[8192, 8, what] * 1e3,
                         "ratio": single[8192, 8, what] / single[8192, 64, what]})
    return rows


def main(engines):
    blas = "openblas" if "openblas" in os.environ.get("LD_PRELOAD", "") else ""
    for engine in engines or ("numpy", "torch", "mlx"):
        sizes = SIZES if engine != "mlx" or blas else SIZES[:4]              # the largest take minutes a call on a reference BLAS
        save(f"moe-{engine}" + (f"-{blas}" if blas else ""), measure(engine, sizes))


if __name__ == "__main__":
    main(sys.argv[1:])
