"""Whether the kernels compute the right thing: on fresh random numbers, against torch in float64."""

from __future__ import annotations

import time

import cupy
import torch

from benchmarks.fftconv_gpu import kernels
from benchmarks.fftconv_gpu.cases import pair
from benchmarks.fftconv_gpu.measure import native, to_torch

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
