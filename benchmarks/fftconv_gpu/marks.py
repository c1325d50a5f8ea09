"""What others publish or offer: FlashFFTConv's figures, cuDNN's own convolution, torch.compile."""

from __future__ import annotations

import torch

from benchmarks.fftconv_gpu import kernels
from benchmarks.fftconv_gpu.cases import HEADS, case, inputs, pair, torch_conv
from benchmarks.fftconv_gpu.measure import measure, median, native, ratio


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
