"""A whole MoE layer on one NVIDIA GPU: Ember's torch engine against torch's grouped product by hand, and transformers' Mixtral.

    python -m benchmarks.gpu_moe out.json

bfloat16, T = 16384 tokens, d = 1024, ff = 4096, GLU, k = 2, E = 8 and 64; forward, and forward with all gradients. The three
compute the same thing from the same weights (checked first, against float32). Interleaved runs, medians; CUDA
events around CALLS calls. "host" is the time in which Python hands a call over, "GPU" that of a call's kernels by themselves: the
larger one bounds the speed.
"""

from __future__ import annotations

import json
import statistics
import sys
import time

import torch
import torch.nn.functional as F

import ember_ml as em
from benchmarks.timing import gpu_seconds
from ember_ml import nn
from ember_ml.kernels import outcomes
from ember_ml.tensor import EmberTensor

CUDA = torch.cuda.is_available()
TOKENS, WIDTH, INNER, SLOTS, EXPERTS = (16384, 1024, 4096, 2, (8, 64)) if CUDA else (96, 32, 48, 2, (8,))
DTYPE = torch.bfloat16 if CUDA else torch.float32
DEVICE = "cuda" if CUDA else "cpu"
ROUNDS = 12

#: calls between two waits for the GPU, as the layers of a model follow each other: Python runs ahead of the GPU on every side
CALLS = 4

#: what was further from float32 than bfloat16 explains
WRONG: list[str] = []


def weights(experts: int) -> dict[str, torch.Tensor]:
    """Input, router and experts' weights."""
    generator = torch.Generator(DEVICE).manual_seed(0)

    def normal(*shape, std):
        return (torch.randn(*shape, generator=generator, device=DEVICE) * std).to(DTYPE)

    return {"x": normal(TOKENS, WIDTH, std=1.0), "router": normal(experts, WIDTH, std=WIDTH ** -0.5),
            "w1": normal(experts, 2 * INNER, WIDTH, std=WIDTH ** -0.5), "w2": normal(experts, WIDTH, INNER, std=INNER ** -0.5)}


def by_hand(x, router, w1, w2):
    """Router, sort, gather, two grouped products, weighted sum, as one writes it in torch."""
    p = torch.softmax(F.linear(x.float(), router.float()), -1)
    top, ids = torch.topk(p, SLOTS)
    top = (top / top.sum(-1, keepdim=True)).to(x.dtype)
    flat = ids.reshape(-1)
    order = torch.argsort(flat, stable=True)
    offsets = torch.cumsum(torch.bincount(flat, minlength=w1.shape[0]), 0).to(torch.int32) if not CUDA else \
        torch.cumsum(torch.histc(flat.float(), w1.shape[0], 0, w1.shape[0] - 1), 0).to(torch.int32)
    rows = x[order // SLOTS]
    gate, up = F.grouped_mm(rows, w1.transpose(1, 2), offs=offsets).chunk(2, -1)
    y = F.grouped_mm(F.silu(gate) * up, w2.transpose(1, 2), offs=offsets)
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(order.numel(), device=order.device)
    return (y[inverse].view(x.shape[0], SLOTS, -1) * top[..., None]).sum(1)


def ours(experts: int):
    """The same by Ember's SparseMoE, as a function of native tensors (its own weights, which are never used, are small)."""
    with em.using(f"torch:{DEVICE}" + (":0" if CUDA else "")):
        layer = nn.SparseMoE(WIDTH, experts, "mlp", SLOTS, expert_config={"d_inner": 8, "glu": True, "activation": "silu"},
                             router_config={"balance_rate": 0.0}, key=em.random.key(0))
    backend = layer.router.weight.backend

    def run(x, router, w1, w2):
        named = {"router.weight": router, "experts.w1": w1, "experts.w2": w2}
        with layer.using({name: EmberTensor(w, backend) for name, w in named.items()}):
            return layer(EmberTensor(x, backend)).data
    return run


def mixtral(experts: int, implementation: str):
    """The same by transformers' MixtralSparseMoeBlock."""
    from transformers.models.mixtral.configuration_mixtral import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
    config = MixtralConfig(hidden_size=WIDTH, intermediate_size=INNER, num_local_experts=experts, num_experts_per_tok=SLOTS,
                           num_hidden_layers=1, vocab_size=8)
    config._experts_implementation = implementation
    with torch.device(DEVICE):
        block = MixtralSparseMoeBlock(config).to(DTYPE)

    def run(x, router, w1, w2):
        named = {"gate.weight": router, "experts.gate_up_proj": w1, "experts.down_proj": w2}
        out = torch.func.functional_call(block, named, (x[None],))
        return (out[0] if isinstance(out, tuple) else out)[0]
    return run


def gradients(run, given, cotangent):
    leaves = [t.detach().requires_grad_() for t in given]
    return torch.autograd.grad(run(*leaves), leaves, cotangent)


def seconds(fn) -> float:
    if not CUDA:
        start = time.perf_counter()
        fn()
        return time.perf_counter() - start
    return gpu_seconds(fn, CALLS)


def host(fn) -> float:
    """Milliseconds until a call has been handed over, the GPU waiting for it."""
    times = []
    for _ in range(ROUNDS):
        torch.cuda.synchronize() if CUDA else None
        start = time.perf_counter()
        fn()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def kernels_of(fn) -> list[tuple[str, float]]:
    """(name, milliseconds) of the kernels of a call, the longest first."""
    if not CUDA:
        return []
    from torch.profiler import ProfilerActivity, profile
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        for _ in range(CALLS):
            fn()
        torch.cuda.synchronize()
    found = [(e.key, e.self_device_time_total / 1e3 / CALLS) for e in profiled.key_averages()]
    return sorted(found, key=lambda pair: -pair[1])


def peak(fn) -> float:
    """MiB that a call takes beyond what was there."""
    if not CUDA:
        return 0.0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    fn()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2 ** 20


def errors(run, given, cotangent) -> dict[str, float]:
    """Largest relative error (norm) of output and gradients against the same in float32 by hand, router choices shared."""
    few = given[0][:512]
    wide = [few.float(), *(t.float() for t in given[1:])]
    reference = [_slow(*wide), *gradients(_slow, wide, cotangent[:512].float())]
    got = [run(few, *given[1:]), *gradients(run, [few, *given[1:]], cotangent[:512])]
    names = ("y", "dx", "drouter", "dw1", "dw2")
    return {name: ((a.float() - b).norm() / b.norm()).item() for name, a, b in zip(names, got, reference)}


def _slow(x, router, w1, w2):
    p = torch.softmax(F.linear(x, router), -1)
    top, ids = torch.topk(p, SLOTS)
    top = top / top.sum(-1, keepdim=True)
    y = torch.zeros_like(x)
    for e in range(w1.shape[0]):
        token, slot = (ids == e).nonzero(as_tuple=True)
        gate, up = F.linear(x[token], w1[e]).chunk(2, -1)
        y = y.index_add(0, token, F.linear(F.silu(gate) * up, w2[e]) * top[token, slot, None])
    return y


def measure(experts: int) -> list[dict]:
    named = weights(experts)
    given = [named[n] for n in ("x", "router", "w1", "w2")]
    cotangent = torch.randn_like(given[0])
    runs = {"ember": ours(experts), "grouped_mm by hand": by_hand}
    try:
        runs["transformers grouped_mm"] = mixtral(experts, "grouped_mm")
        if experts <= 8:
            runs["transformers eager"] = mixtral(experts, "eager")
    except ImportError as error:
        sys.stdout.write(f"without transformers: {error}\n")
    rows = []
    for name, run in list(runs.items()):
        try:
            found = errors(run, given, cotangent)
        except Exception as error:  # a peer that does not run here is left out, ours must
            if name == "ember":
                raise
            sys.stdout.write(f"{name}, E = {experts}: {type(error).__name__}: {str(error).splitlines()[0]}\n")
            del runs[name]
            continue
        worst = max(found.values())
        sys.stdout.write(f"E = {experts}  {name:24} largest error against float32: {worst:.1e}\n")
        if name == "ember" and not worst < (4e-2 if CUDA else 1e-4):
            WRONG.append(f"E = {experts}: {found}")
    for what in ("forward", "forward and backward"):
        calls = {name: (lambda run=run: run(*given)) if what == "forward" else (lambda run=run: gradients(run, given, cotangent))
                 for name, run in runs.items()}
        times = {name: [] for name in calls}
        with torch.no_grad() if what == "forward" else torch.enable_grad():
            for i in range(ROUNDS + 3):
                for name, call in calls.items():
                    t = seconds(call)
                    times[name] += [t] if i >= 3 else []
            memory = {name: peak(call) for name, call in calls.items()}
            handed = {name: host(call) for name, call in calls.items()}
            kernels = {name: kernels_of(call) for name, call in calls.items()}
        flops = 6 * TOKENS * SLOTS * WIDTH * INNER * (1 if what == "forward" else 3)
        for name, values in times.items():
            median = statistics.median(values)
            rows.append({"E": experts, "what": what, "who": name, "ms": median * 1e3, "tflops": flops / median / 1e12,
                         "ember is faster by": statistics.median(v / e for v, e in zip(values, times["ember"])),
                         "peak MiB": memory[name], "host ms": handed[name], "GPU ms": sum(ms for _, ms in kernels[name]),
                         "kernels": [[key[:80], round(ms, 4)] for key, ms in kernels[name][:16]]})
    return rows


def main(path: str | None):
    rows = [row for experts in EXPERTS for row in measure(experts)]
    columns = [name for name in rows[0] if name != "kernels"]
    for row in [dict(zip(columns, columns)), *rows]:
        cells = (f"{row[c]:.3f}" if isinstance(row[c], float) else str(row[c]) for c in columns)
        sys.stdout.write("  ".join(cell.ljust(22) for cell in cells).rstrip() + "\n")
    for row in rows:
        if row["who"] == "ember":
            sys.stdout.write(f"E = {row['E']}, {row['what']}: " + ", ".join(f"{k[:48]} {ms}" for k, ms in row["kernels"]) + "\n")
    kernels = [{"kernel": o.kernel, "device": o.device, "reason": o.reason or "in use"} for o in outcomes()]
    for k in kernels:
        sys.stdout.write(f"kernel {k['kernel']}: {k['reason']}\n")
    about = {"torch": torch.__version__, "device": torch.cuda.get_device_name(0) if CUDA else "cpu", "tokens": TOKENS,
             "d": WIDTH, "ff": INNER, "k": SLOTS, "dtype": str(DTYPE)}
    if path:
        with open(path, "w", encoding="utf-8") as f:
            json.dump({"benchmark": "gpu_moe", "about": about, "wrong": WRONG, "kernels": kernels, "rows": rows}, f, indent=1)
    if WRONG:
        sys.exit(f"wrong results: {WRONG}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
