"""What is compared: ours and torch.fft's, forward and with gradients, on the same arrays."""

from __future__ import annotations

import torch

from benchmarks.fftconv_gpu import kernels
from benchmarks.fftconv_gpu.measure import free, measure, median, native, our_peak, ratio, torch_peak
from ember_ml.kernels import fftconv_plan as plans

ROWS, HEADS = 16384, 1024
LENGTHS = (1024, 4096, 8192, 16384, 32768, 1 << 20)


def pair(length: int, taps: int):
    return plans.cuda_plans(plans.log_m(length, taps))


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
    free()
    return row
