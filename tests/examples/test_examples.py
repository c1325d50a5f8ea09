"""Every example runs as a newcomer would run it: in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))
CONFIGS = sorted((ROOT / "examples").glob("*.toml"))


def run(*command):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "MLX_ENABLE_TF32": "0", "OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=env, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_script(script):
    assert run(str(script)).strip()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda p: p.stem)
def test_config_trains_generates_and_agrees(config, tmp_path):
    ember = ["-c", "from ember_ml.cli import main; main()"]
    out = str(tmp_path / "run")
    text = run(*ember, "train", str(config), "--out", out, "--steps", "2", "--backend", "torch")
    assert "this model" in text and "uniform" in text
    for name in ("model.safetensors", "checkpoints/last.safetensors", "metrics.jsonl", "loss.png", "config.toml"):
        assert (tmp_path / "run" / name).stat().st_size > 0, name
    bases = run(*ember, "generate", out, "--length", "20").strip()
    assert len(bases) == 23 and set(bases) <= set("ACGT")
    assert "0 failed" in run(*ember, "parity", out, "--length", "64")


def test_there_is_something_to_run():
    assert len(SCRIPTS) >= 3 and len(CONFIGS) >= 1
