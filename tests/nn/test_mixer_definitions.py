"""Sequence mixers against their definitions: loops over time in float64 NumPy, written from the papers' equations.

The template (test_sequence_mixers.py) shows that a mixer's forms agree with each other; here is what they have to compute.
"""

import math

import numpy as np
import pytest

import ember_ml as em
from ember_ml.nn.layers import FeatureMap
from ember_ml.registry import layers
from tests.nn._help import cast, close, get, numbers, put

B, L = 2, 9


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def softplus(x):
    return np.log1p(np.exp(x))


def silu(x):
    return x * sigmoid(x)


def gelu_tanh(x):
    return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3)))


def conv(t, u, name="conv"):
    """Causal, channels by themselves, one position after the other."""
    w, taps = t[f"{name}.weight"], t[f"{name}.weight"].shape[1]
    wide = np.concatenate([np.zeros((taps - 1, u.shape[1])), u])
    return np.stack([(wide[i:i + taps] * w.T).sum(0) for i in range(len(u))]) + t.get(f"{name}.bias", 0.0)


def dense(t, x, name):
    return x @ t[f"{name}.weight"].T + t.get(f"{name}.bias", 0.0)


def rms(x, weight, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def mamba2(t, x, c):
    inner, n, heads = t["out_proj.weight"].shape[1], c.d_state, len(t["A_log"])
    z, u, dt = np.split(dense(t, x, "in_proj"), [inner, 2 * inner + 2 * c.groups * n], -1)
    v, b, k = np.split(silu(conv(t, u)), [inner, inner + c.groups * n], -1)
    v, b, k = v.reshape(len(x), heads, -1), b.reshape(len(x), c.groups, n), k.reshape(len(x), c.groups, n)
    dt = softplus(dt + t["dt_bias"])
    if c.dt_limit:
        dt = np.clip(dt, *c.dt_limit)
    state, y = np.zeros((heads, v.shape[2], n)), np.zeros_like(v)
    for i in range(len(x)):
        for h in range(heads):
            group = h // (heads // c.groups)
            state[h] = np.exp(-np.exp(t["A_log"][h]) * dt[i, h]) * state[h] + dt[i, h] * np.outer(v[i, h], b[i, group])
            y[i, h] = state[h] @ k[i, group] + t["D"][h] * v[i, h]
    y = y.reshape(len(x), inner)

    def norm(y):
        parts = np.split(y, c.groups, -1)
        return np.concatenate([rms(part, 1.0, c.norm_eps) for part in parts], -1) * t["norm.weight"]

    y = {"after": lambda: norm(y * silu(z)), "before": lambda: norm(y) * silu(z), None: lambda: y * silu(z)}[c.norm]()
    return dense(t, y, "out_proj")


def rg_lru(t, x, c):
    u = conv(t, dense(t, x, "x_proj"))
    h, out = np.zeros(u.shape[1]), []
    for i, now in enumerate(u):
        parts = now.reshape(c.heads, -1)
        gate_i, gate_r = (sigmoid(np.concatenate([parts[j] @ t[f"{n}_gate"][j] + t[f"{n}_bias"][j] for j in range(c.heads)]))
                          for n in ("input", "recurrence"))
        a = np.exp(-8 * gate_r * softplus(t["decay"]))
        h = a * h + (np.sqrt(1 - a * a) if i else 1.0) * gate_i * now
        out.append(h)
    return dense(t, gelu_tanh(dense(t, x, "y_proj")) * np.stack(out), "out_proj")


def gated_delta_net(t, x, c):
    key_heads, wide = c.key_heads or c.heads, c.heads * c.value_dim
    qk = key_heads * c.key_dim
    qkv, z = np.split(dense(t, x, "in_proj"), [2 * qk + wide], -1)
    q, k, v = np.split(silu(conv(t, qkv)), [qk, 2 * qk], -1)
    q, k = (s.reshape(len(x), key_heads, -1) for s in (q, k))
    q, k = (s / np.sqrt((s * s).sum(-1, keepdims=True) + 1e-6) for s in (q, k))
    v, z = v.reshape(len(x), c.heads, -1), z.reshape(len(x), c.heads, -1)
    b, a = np.split(dense(t, x, "gates"), 2, -1)
    beta, alpha = sigmoid(b), np.exp(-np.exp(t["A_log"]) * softplus(a + t["dt_bias"]))
    state, y = np.zeros((c.heads, c.key_dim, c.value_dim)), np.zeros_like(v)
    for i in range(len(x)):
        for h in range(c.heads):
            key, query = (s[i, h // (c.heads // key_heads)] for s in (k, q))
            state[h] = alpha[i, h] * (np.eye(c.key_dim) - beta[i, h] * np.outer(key, key)) @ state[h] + beta[i, h] * np.outer(key, v[i, h])
            y[i, h] = state[h].T @ query / math.sqrt(c.key_dim)
    return dense(t, (rms(y, t["norm.weight"], c.norm_eps) * silu(z)).reshape(len(x), wide), "out_proj")


def rwkv7(t, x, c):
    heads, n = t["bonus"].shape
    last, state, out = np.zeros(x.shape[1]), np.zeros((heads, n, n)), []
    for now in x:
        xr, xw, xk, xv, xa, xg = (now + t[f"mix_{m}"] * (last - now) for m in "rwkvag")
        last = now
        r, k, v = dense(t, xr, "receptance"), dense(t, xk, "key"), dense(t, xv, "value")
        w = np.exp(-math.exp(-0.5) * sigmoid(t["decay"] + dense(t, np.tanh(dense(t, xw, "decay_down")), "decay_up")))
        a = sigmoid(t["rate"] + dense(t, dense(t, xa, "rate_down"), "rate_up"))
        g = dense(t, sigmoid(dense(t, xg, "gate_down")), "gate_up")
        kappa = (k * t["removal"]).reshape(heads, n)
        kappa = kappa / np.linalg.norm(kappa, axis=-1, keepdims=True)
        k = k * (1 + (a - 1) * t["replacement"])
        r, k, v, w, a = (s.reshape(heads, n) for s in (r, k, v, w, a))
        y = np.zeros((heads, n))
        for h in range(heads):                                # the paper's state: values by keys
            old = state[h].T
            new = old * w[h] - np.outer(old @ kappa[h], a[h] * kappa[h]) + np.outer(v[h], k[h])
            state[h], y[h] = new.T, new @ r[h]
        mean, var = y.mean(-1, keepdims=True), y.var(-1, keepdims=True)
        y = (y - mean) / np.sqrt(var + 1e-5 * n)
        y = y.reshape(-1) * t["norm.weight"] + t["norm.bias"]
        y = y + ((r * k * t["bonus"]).sum(-1, keepdims=True) * v).reshape(-1)
        out.append(dense(t, y * g, "output"))
    return np.stack(out)


def retention(t, x, c):
    d, wide, n = x.shape[1], c.expand_v * x.shape[1], x.shape[1] // c.heads
    q, k, v, g = np.split(dense(t, x, "in_proj"), [d, 2 * d, 2 * d + wide], -1)
    out = np.zeros((len(x), c.heads, wide // c.heads))
    for h in range(c.heads):
        turn = np.exp(1j * np.arange(len(x))[:, None] * 10000.0 ** (-2 * np.arange(n // 2) / n))
        a, b = ((s[:, h * n:(h + 1) * n:2] + 1j * s[:, h * n + 1:(h + 1) * n:2]) * turn for s in (q, k))
        values = v[:, h * out.shape[2]:(h + 1) * out.shape[2]]
        for i in range(len(x)):                               # the sum over the past, with its decay written out
            out[i, h] = sum((1 - 2.0 ** -(5 + h)) ** (i - j) * (a[i] @ b[j].conj()).real * values[j] for j in range(i + 1)) / math.sqrt(n)
    return dense(t, rms(out, 1.0, c.norm_eps).reshape(len(x), wide) * silu(g), "out_proj")


def min_gru(t, x, c):
    h, out = 0.0, []
    for z, new in zip(*np.split(dense(t, x, "proj"), 2, -1)):
        h = (1 - sigmoid(z)) * h + sigmoid(z) * new
        out.append(h)
    return np.stack(out)


DEFINITIONS = [
    (mamba2, dict(d_input=4, d_state=3, head_dim=4)),
    (mamba2, dict(d_input=4, d_inner=12, d_state=2, head_dim=3, groups=2, taps=2, bias=True, conv_bias=False, dt_limit=(0.3, 0.9),
                  norm="before", chunk=4)),
    (mamba2, dict(d_input=4, d_state=2, head_dim=4, norm=None, dt_limit=(0.02, None))),
    (rg_lru, dict(d_input=4)), (rg_lru, dict(d_input=4, d_inner=6, heads=2, taps=2)),
    (gated_delta_net, dict(d_input=4, heads=2, key_dim=3, value_dim=2)),
    (gated_delta_net, dict(d_input=4, heads=4, key_heads=2, key_dim=2, value_dim=3, taps=2)),
    (rwkv7, dict(d_input=6, head_dim=3, decay_rank=2, rate_rank=2, gate_rank=3)),
    (retention, dict(d_input=4, heads=2)), (retention, dict(d_input=6, heads=1, expand_v=1, norm_eps=0.1)),
    (min_gru, dict(d_input=4)), (min_gru, dict(d_input=3, d_hidden=5, bias=False)),
]


@pytest.mark.parametrize("definition, fields", [pytest.param(f, c, id=f"{f.__name__}-{i}") for i, (f, c) in enumerate(DEFINITIONS)])
def test_a_mixer_is_its_definition(definition, fields, backend):
    mixer = layers.instantiate(definition.__name__, key=em.random.key(0), **fields)
    mixer.update({k: put(get(p) + 0.3 * numbers(i, *p.shape)) for i, (k, p) in enumerate(mixer.tensors().items())})
    t = {k: get(p) for k, p in mixer.tensors().items()}
    x = numbers(50, B, L, fields["d_input"])
    want = np.stack([definition(t, row, mixer.config) for row in x])
    close(mixer(put(x))[0], want, 2e-5)
    if backend != "mlx":
        with mixer.using(cast(mixer.tensors(), "float64")):
            close(mixer(put(x, "float64"))[0], want, 1e-9)


def test_feature_maps_of_linear_attention(backend):
    q, k = numbers(1, 5, 4), numbers(2, 5, 4)
    both = np.concatenate([np.maximum(q, 0), np.maximum(-q, 0)], -1)
    rolled = np.concatenate([both * np.roll(both, j, -1) for j in (1, 2, 3, 4)], -1)
    close(FeatureMap("dpfp", 4)(put(q)), rolled, 1e-6)
    taylor = FeatureMap("taylor", 4)
    s = (q * k).sum(-1) / 2.0
    close((get(taylor(put(q))) * get(taylor(put(k)))).sum(-1), 1 + s + s * s / 2, 1e-5)
    close(FeatureMap("elu", 4)(put(q * 100)), np.where(q > 0, q * 100 + 1, np.exp(np.minimum(q * 100, 0))), 1e-6)


def test_a_mixer_says_which_sizes_do_not_fit():
    for name, fields, message in [
            ("mamba2", dict(d_input=4, head_dim=3), "head_dim to divide the 8 inner channels"),
            ("mamba2", dict(d_input=4, head_dim=4, groups=3), "groups the heads; received head_dim=4, groups=3"),
            ("rg_lru", dict(d_input=4, heads=3), "heads to divide the 4 inner channels, received 3"),
            ("gated_delta_net", dict(d_input=4, heads=4, key_heads=3), "key_heads to divide heads = 4, received 3"),
            ("retention", dict(d_input=6, heads=2), "d_input = 6 to be a multiple of 2 heads"),
            ("rwkv5", dict(d_input=4, head_dim=3), "head_dim to divide the 4 inner channels, received 3"),
            ("rwkv7", dict(d_input=4, head_dim=3), "head_dim to divide d_input = 4, received 3")]:
        with pytest.raises(em.ConfigError, match=message):
            layers.instantiate(name, **fields)
