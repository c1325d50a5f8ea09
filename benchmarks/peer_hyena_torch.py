"""The peer: a HyenaDNA language model as a torch user would write it, with nothing of Ember but its data.

`benchmarks.demo_throughput` holds the demo's training step against it. On its own it trains on the chromosome:

    python -m benchmarks.peer_hyena_torch --seconds 150      the learning rate falls with the time that is left
    python -m benchmarks.peer_hyena_torch --steps 1600       or with the updates that are left: repeatable on a busy machine

Clock: updates only, without evaluation. Bits per base are those of the last 5 % of the chromosome, never trained on, in
windows of 1024 bases without context before the first.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

from ember_ml.data import Windows, chromosome, in_order

VOCAB, HELD_OUT = 5, 123_183


@dataclasses.dataclass(frozen=True)
class Settings:
    """Sizes, filter (as in Ember's HyenaFilterConfig) and training of one run."""

    width: int = 64
    layers: int = 2
    inner: int = 256
    length: int = 1024
    batch: int = 8
    features: int = 5
    frequency: float = 10.0
    shift: float = 0.05
    fast_decay: float = 0.3
    slow_decay: float = 1.5
    rate: float = 3e-3
    warmup: int = 100
    floor: float = 1e-5
    weight_decay: float = 0.1
    seed: int = 0


class Filter(nn.Module):
    """Implicit filters: a sine network of the position, under an exponential window."""

    def __init__(self, s: Settings):
        super().__init__()
        bands = (s.features - 1) // 2
        t = torch.linspace(0, 1, s.length)[:, None]
        angle = 2 * math.pi * torch.arange(s.length)[:, None] / s.length * torch.linspace(1e-4, bands - 1, bands)
        rates = torch.linspace(math.log(0.01) / s.slow_decay, math.log(0.01) / s.fast_decay, s.width)
        self.register_buffer("z", torch.cat([t, torch.cos(angle), -torch.sin(angle)], 1))
        self.register_buffer("window", torch.exp(-t * rates.abs()) + s.shift)
        self.layers = nn.ModuleList([nn.Linear(s.features if i == 0 else 64, 64) for i in range(3)])
        self.freq = nn.Parameter(s.frequency * torch.ones(64))
        self.out = nn.Linear(64, s.width, bias=False)

    def forward(self):
        h = self.z
        for layer in self.layers:
            h = torch.sin(self.freq * layer(h))
        return (self.out(h) * self.window).T                                       # (width, length)


class Hyena(nn.Module):
    """Order-2 operator, its long convolution by the usual real FFT of twice the length."""

    def __init__(self, s: Settings):
        super().__init__()
        self.in_proj, self.out_proj = nn.Linear(s.width, 3 * s.width), nn.Linear(s.width, s.width)
        self.short = nn.Conv1d(3 * s.width, 3 * s.width, 3, groups=3 * s.width, padding=2)
        self.filter, self.D = Filter(s), nn.Parameter(torch.randn(s.width))

    def forward(self, x):
        length = x.shape[1]
        x0, x1, v = self.short(self.in_proj(x).transpose(1, 2))[..., :length].chunk(3, dim=1)
        v = v * x1
        k = torch.fft.rfft(self.filter(), n=2 * length)
        y = torch.fft.irfft(torch.fft.rfft(v, n=2 * length) * k, n=2 * length)[..., :length] + v * self.D[:, None]
        return self.out_proj((y * x0).transpose(1, 2))


class Peer(nn.Module):
    """Pre-norm pairs of Hyena and MLP, a last norm, a head tied to the embedding: (B, L) to logits (B, L, VOCAB)."""

    def __init__(self, s: Settings):
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, s.width)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.mixers = nn.ModuleList([Hyena(s) for _ in range(s.layers)])
        self.mlps = nn.ModuleList([nn.Sequential(nn.Linear(s.width, s.inner), nn.GELU(approximate="tanh"),
                                                 nn.Linear(s.inner, s.width)) for _ in range(s.layers)])
        self.norms = nn.ModuleList([nn.LayerNorm(s.width) for _ in range(2 * s.layers + 1)])

    def forward(self, tokens):
        x = self.embedding(tokens)
        for i, (mixer, mlp) in enumerate(zip(self.mixers, self.mlps)):
            x = x + mixer(self.norms[2 * i](x))
            x = x + mlp(self.norms[2 * i + 1](x))
        return self.norms[-1](x) @ self.embedding.weight.T


def make_optimizer(model: nn.Module, s: Settings) -> torch.optim.AdamW:
    """AdamW; only matrices decay."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    return torch.optim.AdamW([{"params": matrices, "weight_decay": s.weight_decay}, {"params": others, "weight_decay": 0.0}],
                             lr=s.rate, betas=(0.9, 0.98))


def update(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor) -> float:
    """One update on int64 (B, L); the loss before it, in nats per base."""
    loss = F.cross_entropy(model(x).reshape(-1, VOCAB), y.reshape(-1))
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()


@torch.no_grad()
def bits_per_base(model: nn.Module, tokens, s: Settings) -> float:
    """Mean of -log2 p over every base of `tokens` that has one before it in its window."""
    total = count = 0
    for x, y in in_order(tokens, s.length, s.batch):
        logits = model(torch.from_numpy(x).long())
        total += F.cross_entropy(logits.reshape(-1, VOCAB), torch.from_numpy(y).long().reshape(-1), reduction="sum").item()
        count += y.size
    return total / count / math.log(2)


def train(s: Settings, steps: int | None, seconds: float | None, evals: int = 8) -> nn.Module:
    """Trains for `steps` updates, or for `seconds` of them, and writes a line at each of `evals` points of the way."""
    torch.manual_seed(s.seed)
    tokens = chromosome()
    windows = Windows(tokens[:-HELD_OUT], s.length, s.batch, s.seed)
    model = Peer(s)
    optimizer = make_optimizer(model, s)
    done, clock, shown, share = 0, 0.0, 0, 0.0
    while share < 1.0:
        start = time.perf_counter()
        rate = s.floor + (s.rate - s.floor) * 0.5 * (1 + math.cos(math.pi * share))
        for group in optimizer.param_groups:
            group["lr"] = rate * min((done + 1) / s.warmup, 1.0)
        x, y = (torch.from_numpy(a).long() for a in windows.batch(done))
        loss, done = update(model, optimizer, x, y), done + 1
        clock += time.perf_counter() - start
        share = done / steps if steps else clock / seconds
        if int(share * evals) > shown or share >= 1.0:
            shown = int(share * evals)
            sys.stdout.write(f"{done:6d} updates {clock:7.1f} s {done * x.numel() / clock:9,.0f} bases/s   training "
                             f"{loss / math.log(2):.4f}   held out {bits_per_base(model, tokens[-HELD_OUT:], s):.4f}\n")
            sys.stdout.flush()
    return model


def main():
    parser = argparse.ArgumentParser(description="Train the plain torch peer on the chromosome.")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--seconds", type=float, default=150.0)
    length.add_argument("--steps", type=int)
    for field in dataclasses.fields(Settings):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    given = vars(parser.parse_args())
    steps, seconds = given.pop("steps"), given.pop("seconds")
    torch.set_num_threads(2)
    train(Settings(**given), steps, seconds)


if __name__ == "__main__":
    main()
