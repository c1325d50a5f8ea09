"""What Ember's front end costs a training step: the same four-block transformer through Ember and written natively.

Both sides compute loss, gradients and an AdamW update of the same values. MLX: the whole step under mx.compile on both
sides. torch: eager on both sides, torch.optim.AdamW on the native one. Target: at most 1.03 of the native time.

    python benchmarks/step_overhead.py
"""

from __future__ import annotations

import math
import os

os.environ.setdefault("MLX_ENABLE_TF32", "0")

import mlx.core as mx
import mlx.optimizers as mlx_optimizers
import numpy as np
import torch
import torch.nn.functional as F

import ember_ml as em
from benchmarks.timing import compare, save
from ember_ml.nn import optimizers
from ember_ml.ops import argmax  # noqa: F401 - loads the op table before the clock starts

BLOCKS, WIDTH, HEADS, VOCAB = 4, 128, 4, 256


def values(rng) -> dict[str, np.ndarray]:
    """Initial parameters, equal on all sides."""
    p = {"embedding": rng.normal(0, 0.02, (VOCAB, WIDTH))}
    for i in range(BLOCKS):
        for name, shape in (("qkv", (3 * WIDTH, WIDTH)), ("out", (WIDTH, WIDTH)), ("up", (4 * WIDTH, WIDTH)),
                            ("down", (WIDTH, 4 * WIDTH))):
            p[f"{i}.{name}"] = rng.normal(0, 1 / math.sqrt(shape[1]), shape)
        for name in ("norm1", "norm2"):
            p[f"{i}.{name}.weight"], p[f"{i}.{name}.bias"] = np.ones(WIDTH), np.zeros(WIDTH)
    return {k: v.astype(np.float32) for k, v in p.items()}


def ember_loss(p, x, y):
    o = em.ops
    h = o.take(p["embedding"], x)
    B, L = x.shape
    for i in range(BLOCKS):
        n = o.layer_norm(h, p[f"{i}.norm1.weight"], p[f"{i}.norm1.bias"], eps=1e-5)
        qkv = o.matmul(n, p[f"{i}.qkv"].T).reshape(B, L, 3, HEADS, WIDTH // HEADS)
        q, k, v = (t.reshape(B, L, HEADS, -1) for t in o.split(qkv, 3, axis=2))
        q, k, v = (o.permute_dims(t, (0, 2, 1, 3)) for t in (q, k, v))
        scores = o.matmul(q, o.swap_axes(k)) * (1.0 / math.sqrt(WIDTH // HEADS))
        a = o.matmul(o.softmax(scores, axis=-1), v)
        h = h + o.matmul(o.permute_dims(a, (0, 2, 1, 3)).reshape(B, L, WIDTH), p[f"{i}.out"].T)
        n = o.layer_norm(h, p[f"{i}.norm2.weight"], p[f"{i}.norm2.bias"], eps=1e-5)
        h = h + o.matmul(o.gelu_tanh(o.matmul(n, p[f"{i}.up"].T)), p[f"{i}.down"].T)
    return o.cross_entropy(o.matmul(h, p["embedding"].T), y).mean()


def torch_loss(p, x, y):
    h = F.embedding(x, p["embedding"])
    B, L = x.shape
    for i in range(BLOCKS):
        n = F.layer_norm(h, (WIDTH,), p[f"{i}.norm1.weight"], p[f"{i}.norm1.bias"])
        q, k, v = torch.matmul(n, p[f"{i}.qkv"].T).reshape(B, L, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        a = torch.softmax(q @ k.mT * (1.0 / math.sqrt(WIDTH // HEADS)), -1) @ v
        h = h + a.permute(0, 2, 1, 3).reshape(B, L, WIDTH) @ p[f"{i}.out"].T
        n = F.layer_norm(h, (WIDTH,), p[f"{i}.norm2.weight"], p[f"{i}.norm2.bias"])
        h = h + F.gelu(n @ p[f"{i}.up"].T, approximate="tanh") @ p[f"{i}.down"].T
    return F.cross_entropy((h @ p["embedding"].T).reshape(-1, VOCAB), y.reshape(-1))


def mlx_loss(p, x, y):
    h = p["embedding"][x]
    B, L = x.shape
    c = math.sqrt(2 / math.pi)
    for i in range(BLOCKS):
        n = mx.fast.layer_norm(h, p[f"{i}.norm1.weight"], p[f"{i}.norm1.bias"], 1e-5)
        q, k, v = (mx.squeeze(t, 2).transpose(0, 2, 1, 3)
                   for t in mx.split((n @ p[f"{i}.qkv"].T).reshape(B, L, 3, HEADS, -1), 3, 2))
        a = mx.softmax(q @ k.swapaxes(-1, -2) * (1.0 / math.sqrt(WIDTH // HEADS)), -1) @ v
        h = h + a.transpose(0, 2, 1, 3).reshape(B, L, WIDTH) @ p[f"{i}.out"].T
        n = mx.fast.layer_norm(h, p[f"{i}.norm2.weight"], p[f"{i}.norm2.bias"], 1e-5)
        u = n @ p[f"{i}.up"].T
        h = h + (0.5 * u * (1 + mx.tanh(c * (u + 0.044715 * u * u * u)))) @ p[f"{i}.down"].T
    logits = h @ p["embedding"].T
    picked = mx.take_along_axis(logits, y[..., None], -1).squeeze(-1)
    return (mx.logsumexp(logits, -1) - picked).mean()


def ember_stepper(engine: str, start, x, y):
    """A function that does one update through Ember and returns the loss."""
    with em.using(engine):
        params = {k: em.tensor(v) for k, v in start.items()}
        batch = em.tensor(x), em.tensor(y)
    optimizer = optimizers.AdamW(optimizers.AdamWConfig(rate=1e-3, weight_decay=0.0))
    state = {"params": params, "optimizer": optimizer.init(params)}
    gradients = em.value_and_grad(ember_loss)

    def update(state, x, y):
        loss, grads = gradients(state["params"], x, y)
        params, opt = optimizer.update(state["params"], grads, state["optimizer"])
        return {"params": params, "optimizer": opt}, loss

    step, held = em.compile(update) if engine == "mlx" else update, {"state": state}
    runtime = params["embedding"].backend.runtime

    def run():
        held["state"], loss = step(held["state"], *batch)
        runtime.synchronize([t.data for t in em.tree.tensors(held["state"])])
        return loss.item()
    return run


def torch_stepper(start, x, y):
    params = {k: torch.tensor(v, requires_grad=True) for k, v in start.items()}
    optimizer = torch.optim.AdamW(params.values(), lr=1e-3, weight_decay=0.0)
    x, y = torch.tensor(x), torch.tensor(y, dtype=torch.int64)

    def run():
        loss = torch_loss(params, x, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()
    return run


def mlx_stepper(start, x, y):
    params = {k: mx.array(v) for k, v in start.items()}
    optimizer = mlx_optimizers.AdamW(1e-3, weight_decay=0.0, bias_correction=True)
    optimizer.init(params)
    x, y = mx.array(x), mx.array(y)
    held = {"params": params}

    def update(params, state, x, y):
        loss, grads = mx.value_and_grad(mlx_loss)(params, x, y)
        optimizer.state = state
        params = optimizer.apply_gradients(grads, params)
        return params, optimizer.state, loss

    step = mx.compile(update)
    held["state"] = optimizer.state

    def run():
        held["params"], held["state"], loss = step(held["params"], held["state"], x, y)
        mx.eval(held["params"], held["state"], loss)
        return loss.item()
    return run


def main():
    rng = np.random.default_rng(0)
    start, rows = values(rng), []
    for engine, batch, length, native in (("torch", 8, 64, torch_stepper), ("mlx", 2, 32, mlx_stepper)):
        x, y = (rng.integers(0, VOCAB, (batch, length)).astype(np.int32) for _ in range(2))
        ours, theirs = ember_stepper(engine, start, x, y), native(start, x, y)
        losses = [(ours(), theirs()) for _ in range(3)]
        assert all(abs(a - b) < 1e-3 for a, b in losses), f"{engine}: the two sides compute different things: {losses}"
        rows.append({"case": f"{engine} step, 4 blocks, width {WIDTH}, batch {batch} x {length}",
                     **compare(ours, theirs, rounds=41), "target": 1.03})
    save("step_overhead", rows)


if __name__ == "__main__":
    main()
