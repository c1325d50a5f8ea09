"""Training whole models on torch: loss and gradients of all weights, Ember's against transformers' own, for architectures both have.

The same weights on both sides (transformers' random model, saved and converted), the same tokens, eager; losses are compared first.
Target: ratio of times at most 1.

    python -m benchmarks.training [family ...]
"""

from __future__ import annotations

import sys

import numpy as np
import torch

import ember_ml as em
from benchmarks.decode import SIZES, pair
from benchmarks.timing import compare, save
from ember_ml import nn

FAMILIES = ("llama", "mamba2", "lfm2", "mixtral")


def measure(family: str, batch: int, length: int) -> dict:
    theirs, ours = pair(family)
    tokens = torch.randint(1, SIZES["vocab_size"], (batch, length))
    inputs, targets = (em.tensor(t.numpy().astype(np.int32), device="torch:cpu") for t in (tokens[:, :-1], tokens[:, 1:]))
    weights = list(theirs.parameters())
    gradient, params, buffers = nn.value_and_grad(ours, lambda model, *batch: model.loss(*batch)), ours.parameters(), ours.buffers()

    def run_ours():
        return gradient(params, buffers, None, inputs, targets)[0].loss.item()

    def run_theirs():
        logits = theirs(tokens[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), tokens[:, 1:].reshape(-1))
        torch.autograd.grad(loss, weights, allow_unused=True)
        return loss.item()

    a, b = run_ours(), run_theirs()
    assert abs(a - b) < 1e-3 * abs(b), f"{family}: the two sides compute different things: {a}, {b}"
    return {"case": f"{family}, batch {batch}, L = {length}", **compare(run_ours, run_theirs, rounds=15, warmup=1), "target": 1.0}


def main(families):
    rows = [measure(family, *size) for family in families or FAMILIES for size in ((1, 512), (8, 128))]
    save("training" if not families else "training_some", rows)


if __name__ == "__main__":
    main(sys.argv[1:])
