"""The verbs on runs that are no DNA: text, classification, regression."""

import json

import numpy as np
import pytest

COMMON = """
seed = 1
[model]
blocks = [{ d_input = 8, layer = "gru" }]
norm = "rms_norm"
%s
[optimizer]
name = "adamw"
rate = 1e-2
[training]
epochs = 1
log_every = 1
eval_every = 2
"""


@pytest.fixture
def arrays(job):
    """Sequences whose class, or number, is how they lean."""
    rng = np.random.default_rng(0)
    slope = rng.uniform(-1, 1, 60)
    x = slope[:, None, None] * np.arange(6)[None, :, None] + 0.1 * rng.normal(size=(60, 6, 2))
    np.savez(job / "x.npz", x=x.astype(np.float32), y=(slope > 0).astype(np.int64), slope=slope.astype(np.float32))
    table = '[data]\nkind = "arrays"\nfiles = "x.npz"\nbatch = 8\n'
    (job / "classes.toml").write_text(COMMON % "" + table)
    (job / "numbers.toml").write_text(COMMON % "" + table + 'y = "slope"\ntask = "regression"\n')
    return job


@pytest.mark.parametrize("config, score", [("classes", "accuracy"), ("numbers", "mse")])
def test_whole_sequences(command, arrays, config, score):
    trained = command("train", f"{config}.toml", "--out", "run", "--backend", "torch")
    assert trained.code == 0, trained.err
    assert f"held-out {score}" in trained.out and "loss " in trained.out and "bits" not in trained.out
    found = json.loads(command("eval", "run", "--backend", "numpy", "--json").out)
    final = json.loads((arrays / "run/summary.json").read_text())["held_out"]
    assert list(found["scores"]) == list(final) and found["scores"] == pytest.approx(final, rel=1e-4) and found["baselines"]
    compared = command("parity", "run")
    assert compared.code == 0 and "outputs" in compared.out and "tokens" not in compared.out, compared
    page = command("report", "run")
    assert page.code == 0 and f"<th>{score}</th>" in (arrays / "run/report.html").read_text()
    planned = json.loads(command("plan", f"{config}.toml", "--backend", "numpy", "--json").out)
    assert planned["parts"][0]["layer"] == "dense" and planned["parts"][0]["parameters"] == 2 * 8 + 8 and planned["length"] == 6
    for data, words in (("job.toml", "asks for the next base"), ("classes.toml" if score == "mse" else "numbers.toml", "head=")):
        other = command("eval", "run", "--data", data)
        assert other.code == 2 and words in other.err
    refused = command("generate", "run")
    assert refused.code == 2 and "expected a model that tells the next token" in refused.err


def test_text_goes_on_from_its_own_beginning(command, job):
    (job / "t.txt").write_text("the cat sat on the mat. " * 40)
    (job / "text.toml").write_text(COMMON % 'head = "tied"' + '[data]\nkind = "text"\nfiles = "t.txt"\nlength = 16\nbatch = 4\ntokenizer = "characters"\n')
    trained = command("train", "text.toml", "--out", "run", "--backend", "numpy", "--steps", 2)
    assert trained.code == 0, trained.err
    own = json.loads(command("eval", "run", "--backend", "numpy", "--json").out)
    (job / "u.txt").write_text("mat at the sea. " * 40)                                       # fewer letters: they would be numbered anew
    (job / "other.toml").write_text((job / "text.toml").read_text().replace("t.txt", "u.txt"))
    other = json.loads(command("eval", "run", "--data", "other.toml", "--backend", "numpy", "--json").out)
    assert other["data"]["letters"] == own["data"]["letters"] == "".join(sorted(set("the cat sat on the mat. ")))
    strange = command("eval", "run", "--data", "other.toml", "--set", "data.letters=\" .abehmst\"")
    assert strange.code == 2 and "mean other things" in strange.err
    said = json.loads(command("generate", "run", "--length", 4, "--backend", "numpy", "--json").out)
    assert len(said["prompt"]) == 16 and said["prompt"] in "the cat sat on the mat. " * 3
    planned = command("plan", "text.toml", "--backend", "numpy")
    assert planned.code == 0 and "an update     4 sequences of 16 positions" in planned.out
    rehearsed = json.loads(command("train", "text.toml", "--backend", "numpy", "--dry-run", "--json").out)
    assert f"the run       {rehearsed['steps']} updates, {64 * rehearsed['steps']:,} positions" in planned.out
