"""Training does not grow: what process and engine hold after 500 updates they hold after 2,000."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import require_engine

ROOT = Path(__file__).resolve().parents[2]

RUN = """
import json, os, subprocess, sys
import numpy as np
import ember_ml as em
from ember_ml import nn
from ember_ml.nn import optimizers
from ember_ml.nn.pipeline.training import Callback, OBJECTIVES, RunFolder, Trainer, TrainingConfig

task, rows = OBJECTIVES["next_token"], []

def batch(i):
    rng = np.random.default_rng(i)
    return tuple(rng.integers(0, 16, (2, (8, 16, 24)[i % 3])).astype(np.int32) for _ in range(2))

class Watch(Callback):
    def step(self, row):
        rss = int(subprocess.run(["ps", "-o", "rss=", "-p", str(os.getpid())], capture_output=True, text=True, check=True).stdout)
        held = __import__("mlx.core").core.get_active_memory() if sys.argv[1] == "mlx" else 0
        rows.append((row["step"], rss * 1024, held))

with em.using(sys.argv[1]):
    blocks = [{"d_input": 16, "layer": "self_attention", "layer_config": {"heads": 2}, "norm": "rms_norm"},
              {"d_input": 16, "layer": "moe", "layer_config": {"num_experts": 4, "k": 2, "expert_config": {"d_inner": 16}}, "norm": "rms_norm"}]
    model = nn.Model.from_config({"vocab_size": 16, "blocks": blocks, "head": "tied"}, key=em.random.key(0))
    Trainer(model, task.loss, optimizers.AdamW(optimizers.AdamWConfig()), batch, TrainingConfig(
        steps=2000, log_every=250, eval_every=100, checkpoint_every=100, ema=0.99), folder=RunFolder(sys.argv[2]),
        evaluate=lambda m: task.evaluate(m, [batch(7), batch(8)]), count=task.count, callbacks=[Watch()]).train()
sys.stdout.write(json.dumps(rows))
"""


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["numpy", "torch", "mlx"])
def test_two_thousand_updates(engine, tmp_path):
    require_engine(engine)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "MLX_ENABLE_TF32": "0", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", RUN, engine, str(tmp_path / "run")], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = {step: (rss, held) for step, rss, held in json.loads(done.stdout)}
    assert sorted(rows) == list(range(250, 2001, 250))
    (early, before), (late, after) = rows[500], rows[2000]
    assert late - early < 4 * 2 ** 20, {step: rss / 2 ** 20 for step, (rss, _) in rows.items()}
    assert after - before <= 64 * 1024, rows
