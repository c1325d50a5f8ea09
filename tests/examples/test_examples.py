"""Every example runs: scripts and the main job in a process of their own, the other configurations on small data."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ember_ml.nn.pipeline.training import config as configs
from ember_ml.nn.pipeline.training.supervised import SupervisedTraining

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))
CONFIGS = sorted((ROOT / "examples").glob("*.toml"))
EMBER = ["-c", "from ember_ml.cli import main; main()"]


def run(*command):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "MLX_ENABLE_TF32": "0", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=env, cwd=ROOT, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_script(script):
    assert run(str(script)).strip()


def test_the_main_job_trains_generates_and_agrees(tmp_path):
    out = str(tmp_path / "run")
    text = run(*EMBER, "train", str(ROOT / "examples" / "dna_hyena.toml"), "--out", out, "--steps", "2", "--backend", "torch")
    assert "this model" in text and "uniform" in text
    for name in ("model.safetensors", "checkpoints/last.safetensors", "metrics.jsonl", "loss.png", "config.toml"):
        assert (tmp_path / "run" / name).stat().st_size > 0, name
    bases = run(*EMBER, "generate", out, "--length", "20").strip()
    assert len(bases) == 23 and set(bases) <= set("ACGT")
    assert "0 failed" in run(*EMBER, "parity", out, "--length", "64")


def text(folder):
    (folder / "x.txt").write_text("to be or not to be, that is the question\n" * 80)
    return {"files": str(folder / "x.txt"), "held_out": 0.2}


def arrays(folder, shape, classes, ragged=False):
    rng = np.random.default_rng(0)
    y = np.arange(shape[0]) % classes
    lengths = {"lengths": rng.integers(7, shape[1], shape[0])} if ragged else {}
    np.savez(folder / "x.npz", x=rng.normal(size=shape) + y[:, None, None], y=y, **lengths)
    return {"files": str(folder / "x.npz")}


def series(folder):
    np.save(folder / "x.npy", np.sin(np.arange(900) / 6.0))
    return {"file": str(folder / "x.npy")}


#: small data of the same form, so that a configuration is tried without fetching anything
STAND_INS = {
    "text_min_gru": text, "series_lstm": series, "images_lstm": lambda folder: arrays(folder, (100, 28, 28), 10),
    "speech_mamba": lambda folder: arrays(folder, (60, 29, 12), 9, ragged=True),
}


def test_every_configuration_is_tried_and_told_of():
    assert {p.stem for p in CONFIGS} == STAND_INS.keys() | {"dna_hyena"} and len(SCRIPTS) >= 3
    page = (ROOT / "examples" / "README.md").read_text()
    assert [p.name for p in SCRIPTS + CONFIGS if f"`{p.name}`" not in page] == []


@pytest.mark.parametrize("name", STAND_INS)
def test_configuration_trains_on_small_data(name, tmp_path):
    config = configs.read(ROOT / "examples" / f"{name}.toml")
    training = dataclasses.replace(config.training, steps=2, log_every=1)
    config = dataclasses.replace(config, data={**config.data, **STAND_INS[name](tmp_path)}, training=training, backend="numpy")
    stage = SupervisedTraining(config)
    stage()
    score = next(iter(stage.trainer.last["eval"].values()))
    assert math.isfinite(score) and len(stage.data.baselines()) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("name", STAND_INS)
def test_the_score_that_is_told(name, tmp_path):
    """The whole training on the real data, which pip fetches: better than every plain model beside; with speech, as good as the best."""
    out = tmp_path / "run"
    printed = run(*EMBER, "train", str(ROOT / "examples" / f"{name}.toml"), "--out", str(out), "--backend", "torch", "--json")
    result = json.loads(printed)
    task = {"text_min_gru": "next_token", "series_lstm": "regression"}.get(name, "classification")
    score, plain = next(iter(result["held_out"].values())), result["baselines"].values()
    spare = 0.01 if name == "speech_mamba" else 0.0
    assert score > max(plain) - spare if task == "classification" else score < min(plain)
