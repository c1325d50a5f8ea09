"""A run that is killed and resumed ends in the same state, to the bit, as one that was left alone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ember_ml.nn.pipeline.training import RunFolder

ROOT = Path(__file__).resolve().parents[2]
JOB = Path(__file__).with_name("_job.py")
TIMES = {"seconds", "tokens_per_second", "memory"}


def start(folder, fasta, engine, *words):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "MLX_ENABLE_TF32": "0", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, str(JOB), str(folder), fasta, engine, *words], env=env,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process):
    out = process.communicate(timeout=300)[0]
    assert process.returncode == 0, out


def rows(folder):
    return [{k: v for k, v in row.items() if k not in TIMES} for row in RunFolder.existing(folder).rows()]


@pytest.fixture(scope="module")
def fasta(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "x.fna"
    path.write_text(">x\n" + "".join(np.random.default_rng(1).choice(list("ACGT"), 3000)) + "\n")
    return str(path)


@pytest.mark.parametrize("engine", ["numpy", "mlx", "torch"])
def test_kill_9_then_resume_is_exact(engine, fasta, tmp_path):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    finish(start(straight, fasta, engine))
    for wanted in (5, 11):                                   # rows after which the run is killed
        process = start(killed, fasta, engine, "slowly", *(["resume"] if killed.exists() else []))
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline and process.poll() is None:
            log = killed / "metrics.jsonl"
            if log.exists() and log.read_text().count("\n") >= wanted:
                break
            time.sleep(0.005)
        assert process.poll() is None, process.communicate()[0]
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert (killed / "checkpoints/last.safetensors").exists() and not (killed / "model.safetensors").exists()
    finish(start(killed, fasta, engine, "resume"))
    assert (killed / "checkpoints/last.safetensors").read_bytes() == (straight / "checkpoints/last.safetensors").read_bytes()
    assert (killed / "model.safetensors").read_bytes() == (straight / "model.safetensors").read_bytes()
    assert rows(killed) == rows(straight)
