"""`ember mad`: the table of a few tiny models, what is kept of it, and how an interrupted one goes on."""

import dataclasses
import json

from ember_ml.nn.pipeline.training import probes
from ember_ml.nn.pipeline.training.probes import ProbeConfig

TINY = dict(d_input=16, depth=1, steps=2, batch=4, train=8, test=8)


def mad(command, *arguments):
    sizes = [part for name, value in TINY.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    return command("mad", "--layers", *arguments, *sizes, "--backend", "numpy", "--out", "found")


def test_the_command_prints_a_table_and_keeps_the_rows(command, job):
    done = mad(command, "min_gru", "short_conv+mlp", "--tasks", "compression", "--tasks", "memorization")
    assert done.code == 0, done.err
    assert "2 models on 2 tasks" in done.out and "mean" in done.out and "4/4, 0 s left" in done.out and "trained for" in done.out
    kept = json.loads((job / "found/mad.json").read_text())
    assert [(r["layers"], r["task"]) for r in kept["rows"]] == [
        (a, b) for a in ("min_gru", "short_conv+mlp") for b in ("compression", "memorization")]
    assert ProbeConfig(**kept["config"]) == dataclasses.replace(ProbeConfig(kept["config"]["layers"]), tasks=["compression", "memorization"], **TINY)
    assert (job / "found/mad.png").read_bytes().startswith(b"\x89PNG")
    wrong = mad(command, "mambaa", "--overwrite")
    assert wrong.code == 2 and "did you mean" in wrong.err and "mamba" in wrong.err
    assert json.loads((job / "found/mad.json").read_text()) == kept, "what is there goes with the first new row"


def test_a_layer_that_there_is_not_is_told_before_anything_is_trained(command, job):
    wrong = mad(command, "min_gru", "min_gru+mpl", "--tasks", "compression")
    assert wrong.code == 2 and "unknown layer 'mpl': did you mean mlp" in wrong.err and not (job / "found").exists()


def test_an_interrupted_table_goes_on(command, job, monkeypatch):
    """Ctrl-C in the third of four trainings: two rows are there, and only the others are trained after it, and those of a further model."""
    trained, whole = [], probes.train

    def some(model, task, c):
        trained.append(type(task).__name__)
        if len(trained) == 3:
            raise KeyboardInterrupt
        return whole(model, task, c)

    monkeypatch.setattr(probes, "train", some)
    asked = ("min_gru", "short_conv+mlp", "--tasks", "compression", "--tasks", "memorization")
    stopped = mad(command, *asked)
    assert stopped.code == 130 and "interrupted; 2 of 4 rows are in found/mad.json; the same command with --resume" in stopped.err
    two = json.loads((job / "found/mad.json").read_text())["rows"]
    assert len(two) == 2
    again = mad(command, *asked)
    assert again.code == 2 and "--resume to keep its rows" in again.err
    other = mad(command, *asked, "--resume", "--seed", "1")
    assert other.code == 2 and "was made with seed 0, now 1" in other.err
    assert mad(command, *asked, "--resume").code == 0 and len(trained) == 5
    more = mad(command, "mlp", "--tasks", "compression", "--resume")
    assert more.code == 0 and "3 models on 2 tasks" in more.out and "4 of 6 are there already" in more.out and len(trained) == 7
    rows = json.loads((job / "found/mad.json").read_text())["rows"]
    assert rows[:2] == two and len(rows) == 6
    (job / "found/mad.json").write_text("{}")
    assert "is no table of ember mad" in mad(command, "mlp", "--resume").err


def test_a_model_that_diverged_is_told(command, job, monkeypatch):
    monkeypatch.setattr(probes, "train", lambda *_: float("nan"))
    done = mad(command, "mlp", "--tasks", "compression")
    assert "diverged" in done.out and json.loads((job / "found/mad.json").read_text())["rows"][0]["loss"] is None
