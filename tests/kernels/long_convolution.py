"""The long convolution for tests: arguments, its definition in float64, the launchers' outputs, and how near they have to be."""

import math

import ml_dtypes
import numpy as np

from ember_ml.kernels import fftconv_plan as plans

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
CONTRACT = {"float32": 1e-6, "float16": 1e-3, "bfloat16": 5e-3}
OPTIONS = {"plain": "", "skip": "D", "gated": "v q", "gelu": "D gelu", "mask": "dropout_mask q", "reverse": "k_reverse",
           "all": "D v q k_reverse dropout_mask gelu"}
NAMES = ("u", "k", "D", "v", "q", "k_reverse", "dropout_mask")


def case(length, taps, options, dtype="float32", batch=3, heads=2, seed=0, head_dim=1):
    """Arguments by name, and the output's gradient."""
    rng = np.random.default_rng(seed)
    rows, filters = (batch, heads * head_dim, length), (heads, taps)
    shapes = {"u": rows, "k": filters, "D": (heads,), "v": rows, "q": rows, "k_reverse": filters, "dropout_mask": (batch, heads)}
    chosen = ["u", "k", *options.split()]
    made = {n: rng.standard_normal(shapes[n]) / (taps ** 0.5 if n[0] == "k" else 1) for n in NAMES}
    arrays = {n: made[n].astype(DTYPES[dtype] if n in "uvq" else np.float32) for n in NAMES if n in chosen}
    return arrays, rng.standard_normal(rows).astype(DTYPES[dtype]), "gelu" in chosen


def causal(x, k):
    """sum_{j <= t} k[h, t - j] x[b, h, j]"""
    return np.stack([[np.convolve(row, k[h])[:x.shape[2]] for h, row in enumerate(rows)] for rows in x])


def flip(x):
    return x[..., ::-1]


def convolve(x, k, k_reverse=None):
    y = causal(x, k)
    return y if k_reverse is None else y + flip(causal(flip(x), k_reverse))


def correlate(dz, x, taps):
    """sum over b and t of dz[t] x[t - lag], for each lag"""
    lags = range(min(taps, x.shape[2]))
    found = np.stack([(dz[..., lag:] * x[..., :x.shape[2] - lag]).sum(axis=(0, 2)) for lag in lags], axis=1)
    return np.pad(found, ((0, 0), (0, taps - len(lags))))


def head_dim_of(arrays):
    return arrays["u"].shape[1] // arrays["k"].shape[0]


def of_pairs(arrays, g, gelu):
    """`definition` for several channels a head: u, q and their gradients are one channel's of a pair, v, y and theirs the other's."""
    width, out = head_dim_of(arrays), {}
    for one in range(width):
        for other in range(width):
            its = {n: slice(one, None, width) if n in "uq" else slice(other, None, width) for n in "uvqy"}
            pair = {n: x[:, its[n]] if n in its else x for n, x in arrays.items()}
            for n, found in definition(pair, g[:, its["y"]], gelu).items():
                out.setdefault(n, np.zeros((arrays["u"] if n == "y" else arrays[n]).shape))
                if n in its:
                    out[n][:, its[n]] += found
                else:
                    out[n] += found
    return out


def definition(arrays, g, gelu):
    """The output and the gradients, by name, in float64."""
    if head_dim_of(arrays) > 1:
        return of_pairs(arrays, g, gelu)
    a = {n: x.astype(np.float64) for n, x in arrays.items()}
    g, taps = g.astype(np.float64), [a[n].shape[1] for n in ("k", "k_reverse") if n in a]
    ones = np.ones(1)
    v, q, mask = a.get("v", ones), a.get("q", ones), a["dropout_mask"][..., None] if "dropout_mask" in a else ones
    skip, filters = a.get("D", np.zeros(1))[:, None], (a["k"], a.get("k_reverse"))
    x = a["u"] * v
    z = convolve(x, *filters) + skip * x
    erf = np.vectorize(math.erf)(z / 2 ** 0.5) if gelu else None
    act, slope = (z * (1 + erf) / 2, (1 + erf) / 2 + z * np.exp(-z * z / 2) / (2 * np.pi) ** 0.5) if gelu else (z, ones)
    dz = g * q * mask * slope
    dx = flip(convolve(flip(dz), *filters)) + skip * dz
    out = {"y": act * mask * q, "u": dx * v, "k": correlate(dz, x, taps[0]), "D": (dz * x).sum(axis=(0, 2)), "v": dx * a["u"],
           "q": g * mask * act, "k_reverse": correlate(flip(dz), flip(x), taps[-1])}
    return {n: t for n, t in out.items() if n == "y" or n in a}


def run(machine, arrays, g, gelu):
    """The same by the launchers."""
    native = {n: machine.array(x) for n, x in arrays.items()}
    return launch(machine, native, machine.array(g), gelu)


def launch(machine, native, g, gelu):
    given = [native.get(n) for n in NAMES]
    static = {"gelu": gelu, "head_dim": head_dim_of(native)}
    y = machine.kernels.KERNELS["fftconv"](*given, **static)
    grads = machine.kernels.KERNELS["fftconv_grad"](g, *given, **static)
    return {"y": machine.numpy(y), **{n: machine.numpy(d) for n, d in zip(NAMES, grads) if d is not None}}


def check(got, expected, dtype):
    assert got.keys() == expected.keys()
    for name, want in expected.items():
        own = dtype if name in "yuvq" else "float32"
        assert got[name].shape == want.shape and got[name].dtype == DTYPES[own], name
        size = np.linalg.norm(want)
        if name == "D":                                    # lag 0 of k's gradient, a sum like the others: which may be near zero
            size = max(size, np.linalg.norm(expected["k"]) / expected["k"].shape[1] ** 0.5)
        error = np.linalg.norm(got[name].astype(np.float64) - want) / size
        assert error < CONTRACT[own], f"{name}: {error:.1e}"


def every_length_takes(monkeypatch, cuda, metal):
    monkeypatch.setattr(plans, "cuda_plans", lambda log_m: (cuda, cuda))
    monkeypatch.setattr(plans, "metal_plan", lambda log_m: metal)
