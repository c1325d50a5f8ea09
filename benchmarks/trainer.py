"""What the trainer costs: its whole loop beside one written by hand for the engine, with the same model and the same batches.

Both sides fetch a batch, compute loss and gradients of a four-block transformer, clip them to a global norm of 1, update by AdamW on a
warm-up and cosine schedule, and read the loss every fifth update. MLX: the whole step under mx.compile on both sides. torch: eager on both
sides. Target: at most 1.03 of the loop by hand.

    python -m benchmarks.trainer
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from benchmarks import step_overhead as parts
from benchmarks.timing import compare, save
import mlx.core as mx
import mlx.optimizers as mlx_optimizers
import torch

import ember_ml as em
from ember_ml import nn
from ember_ml.nn import optimizers
from ember_ml.nn.pipeline.training import Trainer, TrainingConfig

torch.set_num_threads(1)        # what is measured is the loop around the engine, which threads that wait for each other would hide

PEAK, WARMUP, TOTAL, LOG, UPDATES = 1e-3, 20, 4000, 5, 20


class Transformer(nn.Module):
    """The parameters of `step_overhead` as a module."""

    def __init__(self, start):
        self._names = {name: name.replace(".", "_") for name in start}
        for name, attr in self._names.items():
            setattr(self, attr, em.tensor(start[name]))

    def named(self):
        return {name: getattr(self, attr) for name, attr in self._names.items()}


def batches(size, length):
    """batch(i): inputs and targets, windows of a fixed sequence."""
    tokens = np.random.default_rng(1).integers(0, parts.VOCAB, 100_000).astype(np.int32)

    def batch(i):
        starts = (np.arange(size) * 977 + i * 131) % (tokens.size - length - 1)
        rows = tokens[starts[:, None] + np.arange(length + 1)]
        return rows[:, :-1], rows[:, 1:]
    return batch


def rate(step: int) -> float:
    fall = 0.5 * (1.0 + math.cos(math.pi * min(max((step - WARMUP) / (TOTAL - WARMUP), 0.0), 1.0)))
    return PEAK * fall * min((step + 1) / WARMUP, 1.0)


def ember_loop(engine, start, batch):
    """A function that goes on for a number of updates and returns the last loss."""
    with em.using(engine):
        trainer = Trainer(Transformer(start), lambda m, x, y: parts.ember_loss(m.named(), x, y), optimizers.AdamW(optimizers.AdamWConfig(
            optimizers.Schedule(peak=PEAK, total=TOTAL, warmup=WARMUP), weight_decay=0.0)), batch, TrainingConfig(steps=1, log_every=LOG))

    def run(updates=UPDATES):
        trainer.config = dataclasses.replace(trainer.config, steps=trainer.progress.step + updates)
        return trainer.train()["loss"]
    return run


def torch_loop(engine, start, batch):
    params = {k: torch.tensor(v, requires_grad=True) for k, v in start.items()}
    optimizer, at = torch.optim.AdamW(params.values(), lr=PEAK, weight_decay=0.0), [0]

    def run(updates=UPDATES):
        for n in range(1, updates + 1):
            x, y = batch(at[0])
            for group in optimizer.param_groups:
                group["lr"] = rate(at[0])
            optimizer.zero_grad()
            loss = parts.torch_loss(params, torch.from_numpy(np.ascontiguousarray(x)), torch.from_numpy(y.astype(np.int64)))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(params.values(), 1.0)
            optimizer.step()
            at[0] += 1
            if n % LOG == 0:
                last = loss.item()
        return last
    return run


def mlx_loop(engine, start, batch):
    params, at = {k: mx.array(v) for k, v in start.items()}, [0]
    optimizer = mlx_optimizers.AdamW(PEAK, weight_decay=0.0, bias_correction=True)
    optimizer.init(params)
    held = {"params": params, "state": optimizer.state}

    @mx.compile
    def update(params, state, x, y):
        loss, grads = mx.value_and_grad(parts.mlx_loss)(params, x, y)
        grads, _ = mlx_optimizers.clip_grad_norm(grads, 1.0)
        optimizer.state = state
        return optimizer.apply_gradients(grads, params), optimizer.state, loss

    def run(updates=UPDATES):
        for n in range(1, updates + 1):
            x, y = batch(at[0])
            held["state"]["learning_rate"] = mx.array(rate(at[0]))
            held["params"], held["state"], loss = update(held["params"], held["state"], mx.array(x), mx.array(y))
            mx.eval(held["params"], held["state"], loss)
            at[0] += 1
            if n % LOG == 0:
                last = loss.item()
        return last
    return run


def main():
    rows = []
    for engine, size, length, native, rounds in (("torch", 8, 64, torch_loop, 21), ("mlx", 2, 32, mlx_loop, 7)):
        start, batch = parts.values(np.random.default_rng(0)), batches(size, length)
        ours, theirs = ember_loop(engine, start, batch), native(engine, start, batch)
        losses = [(ours(LOG), theirs(LOG)) for _ in range(2)]
        assert all(abs(a - b) < 2e-3 for a, b in losses), f"{engine}: the two sides compute different things: {losses}"
        rows.append({"case": f"{engine} trainer, {UPDATES} updates, 4 blocks, width {parts.WIDTH}, batch {size} x {length}",
                     **compare(ours, theirs, rounds=rounds, warmup=1), "target": 1.03})
    save("trainer", rows)


if __name__ == "__main__":
    main()
