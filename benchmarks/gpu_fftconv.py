"""The CUDA kernels of the long convolution against torch.fft on an NVIDIA GPU.

    python benchmarks/gpu_fftconv.py results.json [--seconds 110] [--skip-variants] [--skip-compile]

First every length is checked against float64 on fresh random numbers, outputs being filled with NaN before; then plans are
compared with each other, then with torch: CUDA events, medians of interleaved runs, inputs that are larger than the L2
cache. Needs torch, CuPy, and this checkout on PYTHONPATH.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import cupy
import ml_dtypes
import torch

from ember_ml.backend.cupy import fftconv as kernels
from ember_ml.kernels import fftconv as plans

START = time.perf_counter()
ROWS, HEADS = 16384, 1024
LENGTHS = (1024, 4096, 8192, 16384, 32768, 1 << 20)


def elapsed() -> float:
    return time.perf_counter() - START


def say(text: str):
    sys.stdout.write(f"[{elapsed():5.1f} s] {text}\n")
    sys.stdout.flush()


def native(x: torch.Tensor | None):
    """The same memory as a cupy.ndarray."""
    if x is None:
        return None
    if x.dtype == torch.bfloat16:
        return cupy.from_dlpack(x.detach().view(torch.int16)).view(ml_dtypes.bfloat16)
    return cupy.from_dlpack(x.detach())


def to_torch(x):
    if x is None:
        return None
    if x.dtype == ml_dtypes.bfloat16:
        return torch.from_dlpack(x.view(cupy.int16)).view(torch.bfloat16)
    return torch.from_dlpack(x)


def pair(length: int, taps: int):
    return plans.cuda_plans(plans.log_m(length, taps))


# ---------------------------------------------------------------- what is compared
def torch_conv(u, k_f, n, v=None, q=None):
    x = u.float() if v is None else u.float() * v.float()
    y = torch.fft.irfft(torch.fft.rfft(x, n=n) * k_f, n=n)[..., :u.shape[-1]]
    return (y if q is None else y * q.float()).to(u.dtype)


def torch_step(leaves, k, g):
    u, *gates = leaves
    y = torch_conv(u, torch.fft.rfft(k, n=2 * u.shape[-1]), 2 * u.shape[-1], *gates)
    return torch.autograd.grad(y, [*leaves, k], g)


def our_step(two, u, k, g, v=None, q=None):
    f = kernels.spectrum(two[0], k, None)
    y = kernels.forward(two[0], u, f, v=v, q=q)
    return y, kernels.backward(two[1], g, u, f, k.shape[1], v=v, q=q)


# ---------------------------------------------------------------- measuring
def measure(functions: dict, rounds: int = 7) -> dict[str, list[float]]:
    """Milliseconds of each function in each round; a function takes the round's number, to change its inputs."""
    times: dict[str, list] = {name: [] for name in functions}
    for name, fn in list(functions.items()):
        try:
            fn(0), fn(1)
            torch.cuda.synchronize()
        except (torch.OutOfMemoryError, cupy.cuda.memory.OutOfMemoryError):
            say(f"{name}: out of memory")
            del functions[name]
            torch.cuda.empty_cache()
            cupy.get_default_memory_pool().free_all_blocks()
    for i in range(rounds):
        for name, fn in functions.items():
            torch.cuda._sleep(1_000_000)                   # the host runs ahead, so that its own time does not count
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            before.record()
            fn(i)
            after.record()
            times[name].append((before, after))
    torch.cuda.synchronize()
    return {name: [a.elapsed_time(b) for a, b in pairs] for name, pairs in times.items()}


def median(times: dict, name: str) -> float:
    return statistics.median(times[name]) if times.get(name) else float("nan")


def ratio(times: dict, peer: str, ours: str) -> float:
    if not times.get(peer) or not times.get(ours):
        return float("nan")
    return statistics.median(p / o for p, o in zip(times[peer], times[ours]))


def bandwidth() -> float:
    a = torch.randn(1 << 29, device="cuda")
    b = torch.empty_like(a)
    return 8 * a.numel() / median(measure({"copy": lambda i: b.copy_(a)}), "copy") / 1e6


def our_peak(fn, output_bytes: int) -> int:
    """Bytes that a call takes from CuPy's pool beyond its outputs."""
    pool = cupy.get_default_memory_pool()
    pool.free_all_blocks()
    before = pool.total_bytes()
    out = fn()
    torch.cuda.synchronize()
    peak = pool.total_bytes() - before - output_bytes
    del out
    return max(peak, 0)


def torch_peak(fn, output_bytes: int) -> int:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out = fn()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before - output_bytes
    del out
    return max(peak, 0)


# ---------------------------------------------------------------- correctness
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def check_cases() -> list[tuple[int, int, bool, bool]]:
    """(length, taps, every option, a reverse filter too): for each plan an exact fit, a ragged and a folded row."""
    cases = [(1, 1, True, False), (2, 2, False, False), (7, 3, True, True)]
    for m in range(5, 15):
        M = 1 << m
        cases += [(M, M, False, False), (M - 3, M - 5, True, True), (M + M // 2 + 1, M // 4, True, False)]
    return cases + [(32768, 32768, True, False), (40000, 39999, False, False), (1 << 20, 1 << 20, False, False)]


def check() -> list[dict]:
    """Relative L2 errors of everything, for lengths of every plan, every option on at least once."""
    contract = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 5e-3}
    generator, rows = torch.Generator("cuda").manual_seed(time.time_ns()), []
    cupy_empty = cupy.empty

    def poisoned(shape, dtype):
        a = cupy_empty(shape, dtype)
        a.view(cupy.uint8).fill(255)                       # NaN in every dtype
        return a
    cupy.empty = poisoned
    for number, (length, taps, full, reversed_) in enumerate(check_cases()):
        two = pair(length, taps)
        if two is not None:
            dtype = DTYPES[number % 3]
            B, H = (3, 5) if length < 1 << 18 else (2, 1)

            def normal(*shape):
                return torch.randn(*shape, device="cuda", generator=generator)
            wide = normal(B, 3 * H, length).to(dtype)
            g, k = normal(B, H, length).to(dtype), normal(H, taps) / taps ** 0.5
            reverse = normal(H, taps) / taps ** 0.5 if reversed_ else None
            D, mask = (normal(H), normal(B, H)) if full else (None, None)
            u, v, q = wide[:, :H], wide[:, H:2 * H] if full else None, wide[:, 2 * H:] if full else None
            leaves = {n: x.double().requires_grad_() for n, x in
                      dict(u=u, v=v, q=q, k=k, k_reverse=reverse, D=D).items() if x is not None}
            x = leaves["u"] * leaves["v"] if full else leaves["u"]
            n = 2 * length
            f = torch.fft.rfft(leaves["k"], n=n)
            if reverse is not None:
                f = f + torch.fft.rfft(leaves["k_reverse"], n=n).conj()
            z = torch.fft.irfft(torch.fft.rfft(x, n=n) * f, n=n)[..., :length]
            if full:
                z = torch.nn.functional.gelu(z + leaves["D"][:, None] * x) * mask.double()[..., None] * leaves["q"]
            wanted = dict(zip(leaves, torch.autograd.grad(z, list(leaves.values()), g.double())), y=z.detach())
            s = kernels.spectrum(two[0], native(k), native(reverse))
            extra = dict(D=native(D), v=native(v), q=native(q), mask=native(mask), gelu=full)
            y = kernels.forward(two[0], native(u), s, **extra)
            got = dict(zip(("u", "v", "q", "k", "k_reverse"), kernels.backward(
                two[1], native(g), native(u), s, taps, 0 if reverse is None else taps, **extra)), y=y)
            got["D"] = got["k"][:, 0]
            again = kernels.forward(two[0], native(u), s, **extra)
            if not bool((y.view(cupy.uint8) == again.view(cupy.uint8)).all()):
                rows.append({"L": length, "K": taps, "what": "not the same bits twice", "error": float("nan"), "ok": False})
            for name, want in wanted.items():
                mine = to_torch(got[name]).double()
                size = want.norm()
                if name == "D":                            # one of dk's lags, and as exact as dk is
                    size = torch.maximum(size, wanted["k"].norm() / taps ** 0.5)
                error = float((mine - want).norm() / size)
                limit = contract[dtype] if name in "uvqy" else 1e-6
                rows.append({"L": length, "K": taps, "dtype": str(dtype), "what": name, "error": error,
                             "ok": error < limit})
    cupy.empty = cupy_empty
    return rows


# ---------------------------------------------------------------- stages
def inputs(batch: int, heads: int, length: int, dtype, gated: bool, sets: int) -> list[dict]:
    """Random arrays for as many rounds as it takes to leave the cache."""
    made = []
    for _ in range(sets):
        names = ("u", "g", *(("v", "q") if gated else ()))
        x = {n: torch.randn(batch, heads, length, device="cuda", dtype=dtype) for n in names}
        k = torch.randn(heads, length, device="cuda") / length
        made.append({**x, "k": k, "k_f": torch.fft.rfft(k, n=2 * length)})
    return made


def case(batch: int, heads: int, length: int, dtype, gated: bool, step: bool, rounds: int = 7) -> dict | None:
    """One line of the table."""
    two = pair(length, length)
    if two is None:
        return None
    size = batch * heads * length * torch.empty(0, dtype=dtype).element_size()
    data = inputs(batch, heads, length, dtype, gated, 3 if size < 1 << 28 else 1)
    cu = [{n: native(x) for n, x in d.items() if n != "k_f"} for d in data]
    for d in cu:
        d["f"] = kernels.spectrum(two[0], d["k"], None)
    gates = ("v", "q") if gated else ()

    def ours(i):
        d = cu[i % len(cu)]
        if step:
            return our_step(two, d["u"], d["k"], d["g"], *(d[n] for n in gates))
        return kernels.forward(two[0], d["u"], d["f"], **{n: d[n] for n in gates})

    def peer(i):
        d = data[i % len(data)]
        if step:
            leaves = [d[n].detach().requires_grad_() for n in ("u", *gates)]
            return torch_step(leaves, d["k"].detach().requires_grad_(), d["g"])
        return torch_conv(d["u"], d["k_f"], 2 * length, *(d[n] for n in gates))

    times = measure({"ours": ours, "torch": peer}, rounds)
    # u (v, q) in, y out; a step also g in, du (dv, dq) out and u (v, q) again
    moved = size * ((4 if gated else 2) + ((3 + 1 + 3 if gated else 3) if step else 0)) + heads * length * 8
    outputs = size * (1 + (len(gates) + 1 if step else 0)) + (heads * length * 4 if step else 0)
    row = {"B": batch, "H": heads, "L": length, "dtype": str(dtype)[6:], "gated": gated, "step": step,
           "ours_ms": median(times, "ours"), "torch_ms": median(times, "torch"), "ratio": ratio(times, "torch", "ours"),
           "useful_GBs": moved / median(times, "ours") / 1e6, "workspace_ours": our_peak(lambda: ours(0), outputs)}
    if times.get("torch"):
        row["workspace_torch"] = torch_peak(lambda: peer(0), outputs)
    del data, cu
    torch.cuda.empty_cache()
    cupy.get_default_memory_pool().free_all_blocks()
    return row


def variants() -> dict[int, tuple[list, list]]:
    """Plans to compare, for forward and backward, by log2 of M. All of one list share log_points' spectrum only if equal."""
    forward = {
        10: [(4, 2, False, 4), (4, 2, False, 6), (5, 4, False, 4)],
        13: [(4, 1, False, 2), (5, 1, False, 2)],
        14: [(5, 1, False, 1), (4, 1, False, 1)],
    }
    backward = {
        10: [(4, 2, False, 4, 2), (5, 4, False, 4, 0)],
        12: [(4, 1, False, 2, 2), (4, 1, False, 3, 0)],
        13: [(4, 1, False, 1, 2), (5, 1, False, 1, 2), (5, 1, False, 2, 0)],
        14: [(5, 1, False, 1, 0), (4, 1, False, 1, 0)],
    }
    return {m: ([plans.CudaPlan(m, p, r, s, b) for p, r, s, b in forward.get(m, [])],
                [plans.CudaPlan(m, p, r, s, b, k) for p, r, s, b, k in backward.get(m, [])])
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
            rows.append({"kind": kind, "log_m": m, "points": p.log_points, "rows": p.rows, "split": p.split,
                         "blocks": p.blocks, "keep": p.keep, "ms": statistics.median(t),
                         "ns_per_point": statistics.median(t) * 1e6 / (batch * heads * length)})
        del data, cu, spectra, functions
        torch.cuda.empty_cache()
        cupy.get_default_memory_pool().free_all_blocks()
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
        torch.cuda.empty_cache()
        cupy.get_default_memory_pool().free_all_blocks()
    return rows


def marks() -> list[dict]:
    rows = []
    row = case(64, 768, 4096, torch.float32, True, False)
    if row:
        rows.append({"mark": "gated, 49152 rows, causal L=4096, float32; FlashFFTConv's published 3.58 ms (H100, half precision)",
                     "ours_ms": row["ours_ms"], "torch_ms": row["torch_ms"], "against_mark": 3.58 / row["ours_ms"]})
    two, n = pair(512, 512), 1024
    for dtype in (torch.float32, torch.bfloat16):
        d = inputs(64, 768, 512, dtype, True, 2)
        cu = [{name: native(x) for name, x in one.items() if name != "k_f"} for one in d]

        def ours(i):
            c = cu[i % 2]
            return kernels.forward(two[0], c["u"], kernels.spectrum(two[0], c["k"], None), v=c["v"], q=c["q"])

        def peer(i):
            c = d[i % 2]
            x, k_f = torch.fft.fft((c["u"] * c["v"]).float(), n=n), torch.fft.fft(c["k"], n=n)
            return torch.fft.ifft(x * k_f, n=n).real[..., :512].to(dtype) * c["q"]
        times = measure({"ours": ours, "torch": peer})
        rows.append({"mark": f"gated, 49152 rows, FFT size 1024, filter transformed in each call, {str(dtype)[6:]}, against complex "
                             "torch.fft; FlashFFTConv's published ratio 7.93", "ours_ms": median(times, "ours"),
                     "torch_ms": median(times, "torch"), "ratio": ratio(times, "torch", "ours")})
    try:
        from cudnn.ops import fft_causal_conv1d
    except ImportError as error:
        rows.append({"mark": "cuDNN fft_causal_conv1d", "absent": str(error)})
    else:
        u, k = torch.randn(16, HEADS, 4096, device="cuda"), torch.randn(HEADS, 4096, device="cuda")
        try:
            times = measure({"cudnn": lambda i: fft_causal_conv1d(u, k)})
            rows.append({"mark": "cuDNN fft_causal_conv1d, 16384 rows, L=4096, plain, float32", "torch_ms": median(times, "cudnn")})
        except Exception as error:
            rows.append({"mark": "cuDNN fft_causal_conv1d", "absent": f"{type(error).__name__}: {error}"[:200]})
    return rows


def compiled() -> list[dict]:
    """The peer under torch.compile, L = 4096, float32, forward."""
    rows = []
    for gated in (False, True):
        d = inputs(16, HEADS, 4096, torch.float32, gated, 1)[0]
        fn = torch.compile(torch_conv)
        gates = [d[n] for n in ("v", "q")] if gated else []
        times = measure({"compiled": lambda i: fn(d["u"], d["k_f"], 8192, *gates),
                         "eager": lambda i: torch_conv(d["u"], d["k_f"], 8192, *gates)})
        rows.append({"gated": gated, "compiled_ms": median(times, "compiled"), "eager_ms": median(times, "eager")})
    return rows


#: compiles kernels into CuPy's cache on disk
_WORKER = """
import json, sys
from ember_ml.backend.cupy import fftconv
for key in json.load(sys.stdin):
    try:
        fftconv._kernel(*key)
    except Exception as error:
        print(key[:2], type(error).__name__, str(error)[:300].replace(chr(10), " "))
"""


def compile_all(work: list):
    """Compiles the kernels that the given calls launch, on all cores: NVRTC does one at a time in a process."""
    found, real = {}, kernels._kernel

    def note(*key):
        found[key] = None
        return lambda *_a, **_k: None
    kernels._kernel = note
    for call in work:
        call()
    kernels._kernel = real
    keys = sorted(found, key=lambda key: -max(int(n) for n in re.findall(r"\b\d+\b", key[1]) if int(n) <= 20))  # long ones first
    workers = []
    count = min(os.cpu_count() or 1, 16)
    for i in range(count):
        worker = subprocess.Popen([sys.executable, "-c", _WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        worker.stdin.write(json.dumps(keys[i::count]))
        worker.stdin.close()
        workers.append(worker)
    for worker in workers:
        sys.stdout.write(worker.stdout.read())
        worker.wait()
    say(f"{len(found)} kernels compiled")


def warm_calls(skip_variants: bool) -> list:
    calls = []

    def add(two, length, dtype, gated):
        def call():
            x = cupy.zeros((1, 1, length), dtype)
            gates = {n: x for n in ("v", "q")} if gated else {}
            k = cupy.zeros((1, length), cupy.float32)
            f = kernels.spectrum(two[0], k, None) if all(two) and not gated else k
            if two[0]:
                kernels.forward(two[0], x, f, **gates)
            if two[1]:
                kernels.backward(two[1], x, x, f, length, **gates)
        calls.append(call)
    for length in (512, *LENGTHS):
        two = pair(length, length)
        for dtype in (cupy.float32, ml_dtypes.bfloat16):
            for gated in (False, True):
                if two is not None:
                    add(two, length, dtype, gated)

    def add_check(two, length, taps, full, reversed_, dtype):
        def call():
            x, one = cupy.zeros((1, 1, length), dtype), cupy.zeros((1, 1), cupy.float32)
            k = cupy.zeros((1, taps), cupy.float32)
            f = kernels.spectrum(two[0], k, k if reversed_ else None)
            extra = dict(D=one[0], v=x, q=x, mask=one, gelu=True) if full else {}
            kernels.forward(two[0], x, f, **extra)
            kernels.backward(two[1], x, x, f, taps, taps if reversed_ else 0, **extra)
        calls.append(call)
    for number, (length, taps, full, reversed_) in enumerate(check_cases()):
        if pair(length, taps) is not None:
            add_check(pair(length, taps), length, taps, full, reversed_,
                      (cupy.float32, cupy.float16, ml_dtypes.bfloat16)[number % 3])
    if not skip_variants:
        for m, (forward, backward) in variants().items():
            for p in by_points(forward, backward).values():
                calls.append(lambda p=p: kernels.spectrum(p, cupy.zeros((1, 1), cupy.float32), None))
            for p in forward:
                add((p, None), 1 << m, cupy.float32, False)
                add((p, None), 1 << m, cupy.float32, True)
            for p in backward:
                add((None, p), 1 << m, cupy.float32, True)
    return calls


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("results")
    parser.add_argument("--seconds", type=float, default=110)
    parser.add_argument("--skip-variants", action="store_true")
    parser.add_argument("--skip-compile", action="store_true")
    args = parser.parse_args()
    out: dict = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "cupy": cupy.__version__}

    def keep():
        out["seconds"] = elapsed()
        Path(args.results).write_text(json.dumps(out, indent=1, default=str))

    def stage(name, fn, reserve=0.0):
        if elapsed() > args.seconds - reserve:
            return say(f"{name}: no time left")
        try:
            out[name] = fn()
        except Exception as error:
            import traceback
            out[name + "_failed"] = traceback.format_exc()
            say(f"{name} failed: {type(error).__name__}: {str(error)[:300]}")
        keep()
        say(f"{name} done")

    say(f"{out['device']}, torch {out['torch']}, cupy {out['cupy']}")
    stage("compile", lambda: compile_all(warm_calls(args.skip_variants)))
    stage("check", check)
    stage("copy_GBs", bandwidth)
    bad = [r for r in out.get("check", []) if not r["ok"]]
    worst: dict = {}
    for r in out.get("check", []):
        kind = r.get("dtype", "") if r["what"] in "uvqy" else "filters"
        worst[kind] = max(worst.get(kind, 0.0), r["error"]) if r["error"] == r["error"] else float("nan")
    say(f"check: {len(out.get('check', []))} errors measured, {len(bad)} beyond the contract; largest {worst}")
    for r in bad[:12]:
        say(f"    {r}")

    def table(lengths, kinds):
        def fill():
            rows = []
            for gated, step, dtype in kinds:
                for length in lengths:
                    if elapsed() > args.seconds - 5:
                        return rows
                    try:
                        row = case(*((1, 256) if length == 1 << 20 else (ROWS // HEADS, HEADS)), length, dtype, gated, step,
                                   7 if length < 32768 else 3)
                    except Exception as error:
                        say(f"L={length} {dtype} gated={gated} step={step}: {type(error).__name__}: {str(error)[:150]}")
                        torch.cuda.empty_cache()
                        cupy.get_default_memory_pool().free_all_blocks()
                        continue
                    rows += [row] if row else []
                keep()
            return rows
        return fill

    full, half = torch.float32, torch.bfloat16
    gates = [(True, True, full), (True, False, full)]
    others = [(False, False, full), (False, True, full), (True, True, half), (False, False, half), (True, False, half),
              (False, True, half)]
    stage("table_long", table(LENGTHS[4:], gates + others))
    stage("table_gated", table(LENGTHS[:4], gates))
    stage("marks", marks)
    if not args.skip_variants:
        stage("plans", compare_plans, 15)
        stage("workspaces", compare_workspaces, 10)
    stage("table_short", table(LENGTHS[:4], others))
    if not args.skip_compile:
        stage("torch_compile", compiled, 15)

    for r in out.get("plans", []):
        sys.stdout.write(f"{r['kind'][:3]} 2^{r['log_m']} points 2^{r['points']} rows {r['rows']} split {int(r['split'])} "
                         f"blocks {r['blocks']} keep {r['keep']}: {r['ms']:.3f} ms {r['ns_per_point'] * 1e3:.2f} ps/point\n")
    for r in (row for name in ("table_gated", "table_short", "table_long") for row in out.get(name, [])):
        share = r["useful_GBs"] / out["copy_GBs"] if "copy_GBs" in out else float("nan")
        sys.stdout.write(f"L={r['L']:<8}{r['dtype']:<9}{'gated' if r['gated'] else 'plain'} {'fwd+bwd' if r['step'] else 'fwd    '} "
                         f"ours {r['ours_ms']:8.3f} ms torch {r['torch_ms']:8.3f} ms ratio {r['ratio']:5.2f} copy share {share:4.0%} "
                         f"workspace {r['workspace_ours'] / 1e6:.0f} / {r.get('workspace_torch', float('nan')) / 1e6:.0f} MB\n")
    for r in out.get("workspaces", []) + out.get("marks", []) + out.get("torch_compile", []):
        sys.stdout.write(", ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in r.items()) + "\n")
    say(f"copy {out.get('copy_GBs', float('nan')):.0f} GB/s, {len(bad)} errors beyond the contract")
    keep()
    sys.exit(1 if bad or not out.get("check") else 0)


if __name__ == "__main__":
    main()
