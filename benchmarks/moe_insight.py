"""What insight into the experts costs: its part of a training step of a language model, in CPU time of one thread.

Two blocks of attention and two mixtures of eight gated experts, two a token, 2,048 tokens of 64 classes, AdamW. On NumPy and torch what is
reported is computed when it is asked for, and has no gradient: the time inside of it is all that it takes. Target: at most 0.02.

    python -m benchmarks.moe_insight
"""

from __future__ import annotations

import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import statistics
import time

import numpy as np

import ember_ml as em
from benchmarks.timing import save
from ember_ml import nn
from ember_ml.nn.moe import insight
from ember_ml.nn.optimizers import AdamW, AdamWConfig
from ember_ml.nn.pipeline.training.objectives import next_token_loss

VOCAB, WIDTH, BATCH, LENGTH, STEPS = 64, 256, 8, 256, 15
EXPERTS = {"num_experts": 8, "k": 2, "expert_config": {"d_inner": 512, "glu": True, "activation": "silu"}, "router_config": {"aux_loss": 0.01}}
BLOCKS = [{"d_input": WIDTH, "layer": "self_attention", "layer_config": {"heads": 4}}, {"d_input": WIDTH, "layer": "moe", "layer_config": EXPERTS}]


def measure(engine: str) -> dict:
    """Median CPU seconds of a step and of the insight in it."""
    model = nn.Model.from_config({"vocab_size": VOCAB, "head": "tied", "blocks": 2 * BLOCKS}, key=em.random.key(0))
    optimizer = AdamW(AdamWConfig(1e-3))
    params, buffers, key = model.parameters(), model.buffers(), em.random.key(1)
    x, y = map(em.tensor, np.random.default_rng(0).integers(0, VOCAB, (2, BATCH, LENGTH)).astype(np.int32))
    state, run, report, inside, steps = optimizer.init(params), nn.value_and_grad(model, next_token_loss), insight.report, [], []

    def timed(*args):
        start = time.process_time()
        report(*args)
        inside[-1] += time.process_time() - start

    insight.report = timed
    try:
        for _ in range(STEPS):
            inside.append(0.0)
            start = time.process_time()
            out, grads = run(params, buffers, key, x, y)
            params, state = optimizer.update(params, grads, state)
            buffers = out.buffers
            steps.append(time.process_time() - start)
    finally:
        insight.report = report
    return {"engine": engine, "step_s": statistics.median(steps), "insight_s": statistics.median(inside),
            "ratio": statistics.median(a / b for a, b in zip(inside, steps))}


if __name__ == "__main__":
    rows = []
    for engine in ("numpy", "torch"):
        with em.using(engine):
            rows.append(measure(engine))
    save("moe_insight", rows)
