"""Training throughput of the demo's model: Ember on torch against the same model as a torch user would write it.

Both train on random bases with the sizes of examples/dna_hyena.toml (2 layers, width 64, L = 1024, batch 8), full step:
loss, gradients, clipping, AdamW. Target: Ember no slower.

    python -m benchmarks.demo_throughput
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn as tnn

import ember_ml as em
from benchmarks.timing import compare, save
from ember_ml import nn
from ember_ml.nn import optimizers
from ember_ml.nn.pipeline.training import initial_state, make_step

WIDTH, LAYERS, LENGTH, BATCH, VOCAB = 64, 2, 1024, 8, 5


class Filter(tnn.Module):
    """Implicit filter: sine network of the position under an exponential window."""

    def __init__(self):
        super().__init__()
        t = torch.linspace(0, 1, LENGTH)[:, None]
        w = 2 * math.pi * torch.arange(LENGTH)[:, None] / LENGTH
        f = torch.linspace(1e-4, 1, 2)[None]
        self.register_buffer("z", torch.cat([t, torch.cos(f * w), -torch.sin(f * w)], 1))
        self.register_buffer("t", t)
        self.register_buffer("deltas", torch.linspace(math.log(0.01) / 1.5, math.log(0.01) / 0.3, WIDTH)[None])
        self.layers = tnn.ModuleList([tnn.Linear(5 if i == 0 else WIDTH, WIDTH) for i in range(3)])
        self.freq = tnn.Parameter(10.0 * torch.ones(WIDTH))
        self.out = tnn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self):
        h = self.z
        for layer in self.layers:
            h = torch.sin(self.freq * layer(h))
        return (self.out(h) * (torch.exp(-self.t * self.deltas.abs()) + 0.05)).T


class Hyena(tnn.Module):
    """Order-2 operator with the usual padded real FFT."""

    def __init__(self):
        super().__init__()
        self.in_proj, self.out_proj = tnn.Linear(WIDTH, 3 * WIDTH), tnn.Linear(WIDTH, WIDTH)
        self.short = tnn.Conv1d(3 * WIDTH, 3 * WIDTH, 3, groups=3 * WIDTH, padding=2)
        self.filter, self.D = Filter(), tnn.Parameter(torch.randn(WIDTH))

    def forward(self, x):
        u = self.short(self.in_proj(x).transpose(1, 2))[..., :LENGTH]
        x0, x1, v = u.split(WIDTH, dim=1)
        v = v * x1
        k_f = torch.fft.rfft(self.filter(), n=2 * LENGTH)
        y = torch.fft.irfft(torch.fft.rfft(v, n=2 * LENGTH) * k_f, n=2 * LENGTH)[..., :LENGTH] + v * self.D[:, None]
        return self.out_proj((y * x0).transpose(1, 2))


class Peer(tnn.Module):
    """Pre-norm blocks with tied embedding."""

    def __init__(self):
        super().__init__()
        self.embedding = tnn.Embedding(VOCAB, WIDTH)
        tnn.init.normal_(self.embedding.weight, std=0.02)
        self.mixers = tnn.ModuleList([Hyena() for _ in range(LAYERS)])
        self.mlps = tnn.ModuleList([tnn.Sequential(tnn.Linear(WIDTH, 4 * WIDTH), tnn.GELU(approximate="tanh"),
                                                   tnn.Linear(4 * WIDTH, WIDTH)) for _ in range(LAYERS)])
        self.norms = tnn.ModuleList([tnn.LayerNorm(WIDTH) for _ in range(2 * LAYERS + 1)])

    def forward(self, tokens):
        x = self.embedding(tokens)
        for i in range(LAYERS):
            x = x + self.mixers[i](self.norms[2 * i](x))
            x = x + self.mlps[i](self.norms[2 * i + 1](x))
        return self.norms[-1](x) @ self.embedding.weight.T


def peer_stepper(x, y):
    """One update of the plain model."""
    model = Peer()
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
                                  lr=1e-3, betas=(0.9, 0.98))
    x, y = torch.from_numpy(x).long(), torch.from_numpy(y).long()

    def run():
        loss = F.cross_entropy(model(x).reshape(-1, VOCAB), y.reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        tnn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()
    return run, sum(p.numel() for p in model.parameters())


def ember_stepper(x, y):
    """One update through Ember on torch."""
    with em.using("torch:cpu"):
        model = nn.HyenaDNA(nn.HyenaDNAConfig(vocab_size=VOCAB, d_input=WIDTH, n_layer=LAYERS, l_max=LENGTH,
                                              d_inner=4 * WIDTH), key=em.random.key(0))
        optimizer = optimizers.AdamW(optimizers.AdamWConfig(rate=1e-3, betas=(0.9, 0.98), weight_decay=0.1))
        batch = em.tensor(x), em.tensor(y)
        held = {"state": initial_state(model, optimizer, em.random.key(1))}
    step = make_step(model, lambda m, x, y: nn.losses.cross_entropy(m(x)[0], y), optimizer, clip=1.0)

    def run():
        held["state"], metrics = step(held["state"], batch)
        return metrics["loss"].item()
    return run, model.count()


def main():
    rng = np.random.default_rng(0)
    x, y = (rng.integers(0, 4, (BATCH, LENGTH)).astype(np.int32) for _ in range(2))
    (ours, our_size), (theirs, their_size) = ember_stepper(x, y), peer_stepper(x, y)
    assert our_size == their_size, f"the two models differ: {our_size} and {their_size} parameters"
    row = compare(ours, theirs, rounds=31)
    rate = BATCH * LENGTH / row["ours_s"]
    save("demo_throughput", [{"case": f"HyenaDNA step, {our_size:,} parameters, {BATCH} x {LENGTH} bases", **row,
                              "bases_per_s": round(rate), "target": 1.0}])


if __name__ == "__main__":
    main()
