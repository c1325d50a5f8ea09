"""What the launchers do beyond plain rows: lengths of 2^j + 2, and heads of several channels; checked, and timed."""

from __future__ import annotations

import torch

from benchmarks.fftconv_gpu import kernels
from benchmarks.fftconv_gpu.cases import HEADS
from benchmarks.fftconv_gpu.check import DTYPES
from benchmarks.fftconv_gpu.measure import measure, median, native, ratio, to_torch

#: (length, channels a head): rows with some numbers more than a transform holds, and the outer product of H3
SPECIAL = ((1026, 1), (16386, 1), (32770, 1), (1000, 4), (20000, 2))


def special_inputs(length: int, head_dim: int, dtype, batch: int, heads: int) -> dict[str, torch.Tensor]:
    rows = (batch, heads * head_dim, length)
    made = {n: torch.randn(rows, device="cuda").to(dtype) for n in ("g", "u", "v", "q")}
    return {**made, "k": torch.randn(heads, length, device="cuda") / length ** 0.5, "D": torch.randn(heads, device="cuda")}


def torch_special(u, k, D, v, q, head_dim: int):
    """The definition of `fftconv` with gates and a skip, in u's dtype."""
    batch, channels, length = u.shape
    one, other = (batch, -1, head_dim, 1, length), (batch, -1, 1, head_dim, length)
    x = u.view(one) * v.view(other)
    f = torch.fft.rfft(k, n=2 * length)[:, None, None]
    z = torch.fft.irfft(torch.fft.rfft(x, n=2 * length) * f, n=2 * length)[..., :length] + D[:, None, None, None] * x
    return (z * q.view(one)).sum(2).reshape(u.shape)


def check_special() -> list[dict]:
    """Relative L2 errors of the launchers for SPECIAL, forward and gradients."""
    limits, rows = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 5e-3}, []
    for number, (length, head_dim) in enumerate(SPECIAL):
        dtype = DTYPES[number % 3]
        a = special_inputs(length, head_dim, dtype, 3, 2)
        leaves = {n: a[n].double().requires_grad_() for n in ("u", "k", "D", "v", "q")}
        y = torch_special(*leaves.values(), head_dim)
        wanted = dict(zip(leaves, torch.autograd.grad(y, list(leaves.values()), a["g"].double())), y=y.detach())
        given = [native(a[n]) for n in leaves]
        got = dict(zip(leaves, kernels.fftconv_grad(native(a["g"]), *given, head_dim=head_dim)), y=kernels.fftconv(*given, head_dim=head_dim))
        for name, want in wanted.items():
            size = want.norm()
            if name == "D":                                # one of dk's lags, and as exact as dk is
                size = torch.maximum(size, wanted["k"].norm() / length ** 0.5)
            error = float((to_torch(got[name]).double() - want).norm() / size)
            rows.append({"L": length, "head_dim": head_dim, "dtype": str(dtype), "what": name, "error": error,
                         "ok": error < (limits[dtype] if name in "uvqy" else 1e-6)})
    return rows


def special() -> list[dict]:
    """Forward and gradients of gated rows in float32: 2^j + 2 numbers against 2^j, and heads of 8 channels against torch."""
    def step(a, head_dim):
        given = [native(a[n]) for n in ("u", "k", "D", "v", "q")]
        return lambda i: (kernels.fftconv(*given, head_dim=head_dim), kernels.fftconv_grad(native(a["g"]), *given, head_dim=head_dim))

    def peer(a, head_dim):
        def call(i):
            leaves = [a[n].detach().requires_grad_() for n in ("u", "k", "D", "v", "q")]
            return torch.autograd.grad(torch_special(*leaves, head_dim), leaves, a["g"])
        return call

    rows = []
    for length, batch in ((1024, 16), (32768, 2)):
        sizes = {n: special_inputs(n, 1, torch.float32, batch, HEADS) for n in (length, length + 2)}
        times = measure({n: step(a, 1) for n, a in sizes.items()}, 5)
        rows.append({"L": length + 2, "against": length, "ms": median(times, length + 2), "times longer": ratio(times, length + 2, length)})
    a = special_inputs(2048, 8, torch.float32, 4, 96)
    times = measure({"ours": step(a, 8), "torch": peer(a, 8)}, 5)
    return [*rows, {"L": 2048, "heads of": 8, "ms": median(times, "ours"), "torch_ms": median(times, "torch"), "ratio": ratio(times, "torch", "ours")}]
