"""The command as people misuse it: one clear line, exit code 2, and nothing left half done."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ember_ml import nn

ROOT = Path(__file__).resolve().parents[2]


def ember(*args, cwd, **env):
    clean = {k: v for k, v in os.environ.items() if k != "EMBER_BACKEND"}
    return subprocess.run([sys.executable, "-c", "from ember_ml.cli import main; main()", *map(str, args)], cwd=cwd, text=True,
                          env={**clean, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **env}, capture_output=True,
                          timeout=300)


@pytest.fixture
def job(tmp_path):
    """A small configuration on a FASTA file of its own."""
    (tmp_path / "x.fna").write_text(">x\n" + "".join(np.random.default_rng(1).choice(list("ACGT"), 3000)) + "\n")
    (tmp_path / "job.toml").write_text("""
seed = 1
[data]
kind = "dna"
fasta = "x.fna"
length = 16
batch = 2
held_out = 200
[model]
family = "hyena_dna"
d_input = 8
n_layer = 1
l_max = 16
filter = { width = 4 }
[optimizer]
name = "adamw"
rate = 1e-2
[training]
steps = 4
log_every = 1
eval_every = 2
checkpoint_every = 2
""")
    return tmp_path


def test_train_generate_parity_and_resume(job):
    done = ember("train", "job.toml", "--out", "run", "--backend", "numpy", cwd=job)
    assert done.returncode == 0, done.stderr
    assert "held-out bits per base" in done.stdout and "Markov, order 6" in done.stdout
    assert (job / "run/loss.png").read_bytes().startswith(b"\x89PNG")
    rows = [json.loads(line) for line in (job / "run/metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows if "loss" in r] == [1, 2, 3, 4]
    again = ember("train", "job.toml", "--out", "run", "--backend", "numpy", cwd=job)
    assert again.returncode == 2 and "--resume" in again.stderr and "--overwrite" in again.stderr
    longer = ember("train", "job.toml", "--out", "run", "--backend", "numpy", "--resume", "--steps", "6", cwd=job)
    assert longer.returncode == 0 and "step      6" in longer.stdout

    first, second = (ember("generate", "run", "--length", "30", "--backend", b, cwd=job).stdout.strip() for b in ("numpy", "torch"))
    assert len(first) == 33 and set(first) <= set("ACGT") and first == second
    shown = ember("parity", "run", "--length", "16", "--json", "rows.json", cwd=job)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert shown.stdout.strip().endswith("0 failed")
    assert all(r["pass"] for r in json.loads((job / "rows.json").read_text()))


def test_a_model_as_a_list_of_blocks(job):
    text = (job / "job.toml").read_text()
    old = text[text.index('family = "hyena_dna"'):text.index("[optimizer]")]
    (job / "job.toml").write_text(text.replace(old, """
head = "tied"
norm = "rms_norm"
defaults = { d_input = 8, norm = "rms_norm" }
blocks = [
    { layer = "self_attention", self_attention_config = { heads = 2, rope = {} } },
    "gated_mlp",
    { block = "mamba", repeat = 2, d_state = 4 },
    { layer = "moe", moe_config = { num_experts = 2, expert_config = { d_inner = 8 } } },
]
"""))
    done = ember("train", "job.toml", "--out", "run", "--backend", "numpy", cwd=job)
    assert done.returncode == 0, done.stderr
    made = nn.Model.load(job / "run/model.safetensors", device="numpy")
    assert [b.config.layer for b in made.blocks] == ["self_attention", "gated_mlp", "mamba", "mamba", "moe"]
    bases = ember("generate", "run", "--length", "12", "--top-k", "2", "--stop", "GATTACA", "--backend", "numpy", cwd=job).stdout.strip()
    assert set(bases) <= set("ACGT") and 3 <= len(bases) <= 15


@pytest.mark.parametrize("args, words", [
    (("train", "none.toml"), "none.toml: no such file"),
    (("train", "job.toml", "--backend", "tensorflow"), "tensorflow"),
    (("train", "job.toml", "--backend", "torch:cuda:0"), "no NVIDIA GPU"),
    (("train", "job.toml", "--resume"), "no run to resume"),
    (("generate", "norun"), "is no run"),
    (("parity", "norun"), "is no run"),
])
def test_misuse_is_told_in_one_line(job, args, words):
    import re
    done = ember(*args, cwd=job)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("ember: ") and done.stderr.count("\n") == 1
    assert re.search(words, done.stderr)


@pytest.mark.parametrize("old, new, words", [
    ("d_input = 8", "d_inptu = 8", "d_input"),
    ('family = "hyena_dna"', 'family = "hyena_dan"', "did you mean hyena_dna"),
    ('name = "adamw"', 'name = "adamax"', "adamw"),
    ('kind = "dna"', 'kind = "rna"', "dna"),
    ("steps = 4", "stepz = 4", "steps"),
    ("length = 16", "length = 5000", "length"),
])
def test_a_wrong_configuration_names_what_is_wrong(job, old, new, words):
    text = (job / "job.toml").read_text()
    assert old in text
    (job / "job.toml").write_text(text.replace(old, new, 1))
    done = ember("train", "job.toml", "--out", "run", "--backend", "numpy", cwd=job)
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr
    assert not (job / "run" / "model.safetensors").exists()


def test_parity_fails_on_a_model_that_was_tampered_with(job):
    assert ember("train", "job.toml", "--out", "run", "--backend", "numpy", cwd=job).returncode == 0
    model = job / "run/model.safetensors"
    model.write_bytes(model.read_bytes()[:-10])
    done = ember("parity", "run", cwd=job)
    assert done.returncode == 2 and "model.safetensors" in done.stderr


def test_generate_refuses_letters_that_are_no_bases(job):
    assert ember("train", "job.toml", "--out", "run", "--backend", "numpy", cwd=job).returncode == 0
    done = ember("generate", "run", "--prompt", "HELLO", cwd=job)
    assert done.returncode == 2 and "'E'" in done.stderr


def test_doctor_tells_every_path_on_every_device(job):
    done = ember("doctor", "--selftest", "--json", "d.json", cwd=job)
    assert done.returncode == 0, done.stderr
    found = json.loads((job / "d.json").read_text())
    assert set(found["engines"]) >= {"numpy", "mlx", "torch", "cupy"}
    paths = found["devices"]["numpy:cpu"]
    assert paths["ops"]["add"] == "native" and set(paths["ops"].values()) == {"native", "composite"}
    assert {state["reason"] for state in paths["kernels"].values()} == {"no Metal or CUDA device"}
    assert "numpy:cpu: " in done.stdout and "no Metal or CUDA device" in done.stdout


def test_help_lists_the_verbs(job):
    done = ember("--help", cwd=job)
    assert done.returncode == 0 and all(verb in done.stdout for verb in ("train", "generate", "parity", "doctor"))
