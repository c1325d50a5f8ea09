"""What `ember plan --probe` says against what the run then takes, on the same engine in the same process; and how long help takes.

Memory: what two updates tell, and what the line through a quarter and a half of the batch tells where whole ones would not be tried, against
the engine's own peak over a run (target: within 15%).
Time: an update in the probe against the median update of the run.

    python benchmarks/plan.py
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("MLX_ENABLE_TF32", "0")

import numpy as np

from benchmarks.timing import save
from ember_ml.nn.pipeline.training import RunConfig, Rows, plan
from ember_ml.nn.pipeline.training.supervised import SupervisedTraining
from ember_ml.registry import from_dict

LENGTH, BATCH, WIDTH, STEPS = 256, 8, 64, 12

BLOCKS = {
    "attention": {"layer": "self_attention", "layer_config": {"heads": 4, "rope": {}}},
    "hyena": {"layer": "hyena", "layer_config": {"l_max": LENGTH, "filter": {"width": 32}}},
    "mamba": {"layer": "mamba"},
    "lstm": {"layer": "lstm"},
    "mlstm": {"layer": "mlstm", "layer_config": {"heads": 4}},
    "moe": {"layer": "moe", "layer_config": {"num_experts": 4, "k": 2, "expert_config": {"d_inner": 128}}},
}


def job(file: Path, block: dict, backend: str) -> RunConfig:
    """Two blocks of that layer, each with a gated perceptron, on bytes."""
    blocks = [{"d_input": WIDTH, "norm": "rms_norm", **b} for b in (block, {"layer": "gated_mlp"})] * 2
    return from_dict(RunConfig, {
        "data": {"kind": "text", "files": str(file), "length": LENGTH, "batch": BATCH, "tokenizer": "bytes"},
        "model": {"blocks": blocks, "norm": "rms_norm", "head": "tied"}, "optimizer": {"name": "adamw", "rate": 1e-3},
        "training": {"steps": STEPS, "log_every": 1, "eval_every": STEPS}, "backend": backend})


def beside(name: str, run: RunConfig) -> dict:
    """One row: the plan, then the run."""
    predicted, found, _ = plan.memory(run, plan.count(run))
    by_line = plan.extrapolate([found[0], plan.measure(run, BATCH // 2)], BATCH)
    probe, rows = plan.measure(run, updates=6), Rows()
    SupervisedTraining(run, callbacks=[rows])()
    updates = [row for row in rows.rows if "loss" in row]
    peak = max(row["memory"] for row in updates)
    ends = [row["seconds"] for row in updates]
    seconds = statistics.median(b - a for a, b in zip(ends[2:], ends[3:]))
    return {"what": f"{run.backend} {name}", "plan_MiB": predicted / 2**20,
            "measured_MiB": peak / 2**20, "memory_ratio": predicted / peak, "by_line_ratio": by_line / peak, "probe_s": probe.seconds, "run_s": seconds,
            "time_ratio": probe.seconds / seconds}


def help_row(rounds: int = 15) -> dict:
    """`ember --help`, the whole process: median seconds by the clock, and of the processor, which other work does not touch."""
    times, before = [], os.times()
    for _ in range(rounds):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", "from ember_ml.cli import main; main()", "--help"], check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    now = os.times()
    cpu = (now.children_user + now.children_system - before.children_user - before.children_system) / rounds
    return {"what": "ember --help", "run_s": statistics.median(times), "cpu_s": cpu}


def main():
    rows = [help_row()]
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        text.write_bytes(np.random.default_rng(0).integers(97, 123, 200_000).astype(np.uint8).tobytes())
        for name, block in BLOCKS.items():
            rows.append(beside(name, job(text, block, "mlx:cpu")))
    save("plan", rows)


if __name__ == "__main__":
    main()
