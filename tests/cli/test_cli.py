"""The command as people misuse it: one clear line, exit code 2, and nothing left half done."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer

from ember_ml import backend as engines
from ember_ml import nn
from ember_ml.cli import app

ROOT = Path(__file__).resolve().parents[2]


def ember(*args, cwd, **env):
    clean = {k: v for k, v in os.environ.items() if k != "EMBER_BACKEND"}
    return subprocess.run([sys.executable, "-c", "from ember_ml.cli import main; main()", *map(str, args)], cwd=cwd, text=True,
                          env={**clean, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **env}, capture_output=True,
                          timeout=300)


def test_train_generate_parity_and_resume(command, job):
    done = ember("train", "job.toml", "--out", "run", "--backend", "numpy", cwd=job)         # a process of its own, as people have it
    assert done.returncode == 0, done.stderr
    assert "held-out bits per base" in done.stdout and "Markov, order 6" in done.stdout
    assert (job / "run/loss.png").read_bytes().startswith(b"\x89PNG")
    rows = [json.loads(line) for line in (job / "run/metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows if "loss" in r] == [1, 2, 3, 4]
    again = command("train", "job.toml", "--out", "run", "--backend", "numpy")
    assert again.code == 2 and "--resume" in again.err and "--overwrite" in again.err
    longer = command("train", "job.toml", "--out", "run", "--backend", "numpy", "--resume", "--steps", "6")
    assert longer.code == 0 and "step      6" in longer.out

    first, second = (command("generate", "run", "--length", "30", "--backend", b).out.strip() for b in ("numpy", "torch"))
    assert len(first) == 33 and set(first) <= set("ACGT") and first == second
    shown = command("parity", "run", "--length", "16", "--out", "rows.json")
    assert shown.code == 0, shown.out + shown.err
    assert shown.out.strip().endswith("0 failed")
    assert all(r["pass"] for r in json.loads((job / "rows.json").read_text()))


def test_a_model_as_a_list_of_blocks(command, job):
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
    done = command("train", "job.toml", "--out", "run", "--backend", "numpy")
    assert done.code == 0, done.err
    made = nn.Model.load(job / "run/model.safetensors", device="numpy")
    assert [b.config.layer for b in made.blocks] == ["self_attention", "gated_mlp", "mamba", "mamba", "moe"]
    bases = command("generate", "run", "--length", "12", "--top-k", "2", "--stop", "GATTACA", "--backend", "numpy").out.strip()
    assert set(bases) <= set("ACGT") and 3 <= len(bases) <= 15


@pytest.mark.parametrize("args, words", [
    (("train", "none.toml"), "none.toml: no such file"),
    (("train", "job.toml", "--backend", "tensorflow"), "tensorflow"),
    (("train", "job.toml", "--backend", "torch:cuda:0"), "no NVIDIA GPU"),
    (("train", "job.toml", "--resume"), "no run to resume"),
    (("generate", "norun"), "is no run"),
    (("parity", "norun"), "is no run"),
])
def test_misuse_is_told_in_one_line(command, job, args, words):
    import re
    done = command(*args)
    assert done.code == 2, done.out + done.err
    assert done.err.startswith("ember: ") and done.err.count("\n") == 1
    assert re.search(words, done.err)


@pytest.mark.parametrize("old, new, words", [
    ("d_input = 8", "d_inptu = 8", "d_input"),
    ('family = "hyena_dna"', 'family = "hyena_dan"', "did you mean hyena_dna"),
    ('name = "adamw"', 'name = "adamax"', "adamw"),
    ('kind = "dna"', 'kind = "rna"', "dna"),
    ("steps = 4", "stepz = 4", "steps"),
    ("length = 16", "length = 5000", "length"),
])
def test_a_wrong_configuration_names_what_is_wrong(command, job, old, new, words):
    text = (job / "job.toml").read_text()
    assert old in text
    (job / "job.toml").write_text(text.replace(old, new, 1))
    done = command("train", "job.toml", "--out", "run", "--backend", "numpy")
    assert done.code == 2 and words in done.err and "Traceback" not in done.err
    assert not (job / "run" / "model.safetensors").exists()


def test_parity_fails_on_a_model_that_was_tampered_with(command, job):
    assert command("train", "job.toml", "--out", "run", "--backend", "numpy").code == 0
    model = job / "run/model.safetensors"
    model.write_bytes(model.read_bytes()[:-10])
    done = command("parity", "run")
    assert done.code == 2 and "model.safetensors" in done.err


def test_generate_refuses_letters_that_are_no_bases(command, job):
    assert command("train", "job.toml", "--out", "run", "--backend", "numpy").code == 0
    done = command("generate", "run", "--prompt", "HELLO")
    assert done.code == 2 and "'E'" in done.err


def test_doctor_tells_every_path_on_every_device(command, job):
    done = command("doctor", "--selftest", "--out", "d.json")
    assert done.code == 0, done.err
    found = json.loads((job / "d.json").read_text())
    assert set(found["engines"]) >= {"numpy", "mlx", "torch", "cupy"}
    assert found["memory"] > 2**28 and set(found["compilers"]) == {"c++", "nvcc"}
    paths = found["devices"]["numpy:cpu"]
    assert paths["ops"]["add"] == "native" and set(paths["ops"].values()) == {"native", "composite"}
    assert {state["reason"] for state in paths["kernels"].values()} == {"no Metal or CUDA device"}
    assert "numpy:cpu: " in done.out and "no Metal or CUDA device" in done.out


def test_doctor_tells_its_findings_where_the_file_cannot_be_written(command, job):
    done = command("doctor", "--out", "missing/d.json")
    assert done.code == 2 and "numpy:cpu: " in done.out and "missing/d.json" in done.err


@pytest.mark.parametrize("damage", ["raise OSError('libcudart.so.13: cannot open shared object file')", "import libcudart",
                                    "raise RuntimeError('module compiled against another ABI')"])
def test_doctor_tells_which_engine_is_damaged(command, monkeypatch, tmp_path, damage):
    """It is what one asks first when an engine does not load."""
    (tmp_path / "damaged_engine.py").write_text(f"{damage}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(engines.KNOWN, "odd", ("damaged_engine", "damaged_engine", "pip install odd"))
    engines.names.cache_clear()
    try:
        done = command("doctor")
    finally:
        engines.names.cache_clear()
    assert done.code == 0 and "numpy:cpu: " in done.out
    assert re.search("'odd' is installed but does not load: .*(libcudart|another ABI).*; install it again: pip install odd", done.out)


def test_help_lists_the_verbs_and_loads_no_heavy_package(tmp_path):
    code = """
import atexit, json, sys
atexit.register(lambda: json.dump(sorted({name.partition(".")[0] for name in sys.modules}), open("loaded.json", "w")))
from ember_ml.cli import main
main(["--help"])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True,
                          text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for verb in ("train", "eval", "generate", "convert", "parity", "report", "plan", "doctor", "mad"):
        assert f"\n  {verb} " in done.stdout
    loaded = json.loads((tmp_path / "loaded.json").read_text())
    assert "typer" in loaded
    assert not {"numpy", "mlx", "torch", "cupy", "matplotlib", "jinja2", "pydantic", "ml_dtypes"} & set(loaded)


def test_the_page_names_every_verb_and_option():
    page = (ROOT / "docs/command.md").read_text()
    for verb, found in typer.main.get_command(app).commands.items():
        assert f"| `{verb}" in page
        options = [o for p in found.params for o in p.opts if o.startswith("--")]
        assert [o for o in options if f"`{o}" not in page] == []
