"""What scripts rely on: --set, --dry-run, --json, exit codes; and how a run shows itself on a terminal and elsewhere."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from rich.console import Console

from ember_ml.cli import card, display
from ember_ml.cli.output import Output
from ember_ml.cli.overrides import override
from ember_ml.errors import ConfigError
from ember_ml.nn.pipeline.training.lock import FolderLock
from tests.cli.test_cli import ROOT

TRAIN = ("train", "job.toml", "--out", "run", "--backend", "numpy")


@pytest.mark.parametrize("text, place, value", [
    ("training.steps=7", ("training", "steps"), 7),
    ("optimizer.rate = 1e-3", ("optimizer", "rate"), 1e-3),
    ("optimizer.rate.peak=0.5", ("optimizer", "rate"), {"peak": 0.5}),
    ("model.tied=true", ("model", "tied"), True),
    ("optimizer.name=adamw", ("optimizer", "name"), "adamw"),
    ('data.fasta="a b.fna"', ("data", "fasta"), "a b.fna"),
    ("data.fasta=../dir/x-1.fna", ("data", "fasta"), "../dir/x-1.fna"),
    ("optimizer.betas=[0.9, 0.98]", ("optimizer", "betas"), [0.9, 0.98]),
    ("model.blocks.1.dropout=0.5", ("model", "blocks"), [{"layer": "a"}, {"layer": "b", "dropout": 0.5}]),
])
def test_set_puts_a_toml_value_in_its_place(text, place, value):
    table = {"training": {"steps": 1}, "optimizer": {"name": "sgd"}, "data": {}, "model": {"blocks": [{"layer": "a"}, {"layer": "b"}]}}
    before = json.dumps(table)
    found = override(table, [text])
    assert found[place[0]][place[1]] == value
    assert json.dumps(table) == before


def test_steps_and_epochs_take_each_others_place():
    assert override({"training": {"steps": 1}}, ["training.epochs=2"]) == {"training": {"epochs": 2}}
    assert override({"training": {"epochs": 1, "clip": 1.0}}, ["training.steps=2"]) == {"training": {"steps": 2, "clip": 1.0}}


@pytest.mark.parametrize("text, words", [
    ("training.stepz=7", "did you mean training.steps"),
    ("trainig.steps=7", "did you mean training.steps"),
    ("steps=7", "did you mean training.steps"),
    ("bakend=numpy", "did you mean backend"),
    ("qqq=7", "the tables are data, model"),
    ("training.steps", "expected key=value"),
    ("=3", "expected key=value"),
    ("training..steps=3", "expected key=value"),
    ("training.steps=3 4", "expected a TOML value"),
    ("model.blocks.2.dropout=0.5", "below 2, the length of the list"),
    ("model.blocks.first.dropout=0.5", "below 2, the length of the list"),
    ("model.d_input.x=1", "no table"),
])
def test_set_that_fits_nothing_says_what_would(text, words):
    with pytest.raises(ConfigError, match=words):
        override({"training": {"steps": 1}, "model": {"d_input": 8, "blocks": [{"layer": "a"}, {"layer": "b"}]}}, [text])


def test_set_reaches_the_run_and_its_config(command, job):
    done = command(*TRAIN, "--set", "training.steps=2", "--set", "optimizer.rate=0.5", "--set", "model.d_input=4")
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in (job / "run/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 2 and rows[0]["rate"] == 0.5
    assert "d_input = 4" in (job / "run/config.toml").read_text()


def test_dry_run_builds_everything_and_writes_nothing(command, job):
    before = sorted(job.rglob("*"))
    done = command(*TRAIN, "--dry-run")
    assert done.code == 0, done.err
    assert "hyena" in done.out and "2,800 bases to train on" in done.out and "4 updates; nothing was trained" in done.out
    found = json.loads(command(*TRAIN, "--dry-run", "--json").out)
    assert found["parameters"] == sum(part["parameters"] for part in found["parts"][:-1]) and found["steps"] == 4
    assert found["config"]["training"]["keep"] == 2 and "keep = 2" in done.out and "steps = 7" in command(*TRAIN, "--dry-run", "--steps", 7).out
    assert command(*TRAIN, "--dry-run", "--set", "data.fasta=gone.fna").code == 2
    assert sorted(job.rglob("*")) == before


def test_json_is_one_document_and_nothing_else(command):
    trained = command(*TRAIN, "--json")
    found = json.loads(trained.out)
    assert found["steps"] == 4 and found["backend"] == "numpy:cpu" and set(found["held_out"]) == {"bits"} and "uniform" in found["baselines"]
    assert "held-out bits per base" in trained.err
    judged = json.loads(command("eval", "run", "--backend", "numpy", "--json").out)
    assert judged["scores"] == found["held_out"] and judged["baselines"] == found["baselines"]
    sampled = json.loads(command("generate", "run", "--length", 5, "--backend", "numpy", "--json").out)
    assert sampled["prompt"] == "ATG" and len(sampled["text"]) == 5
    compared = command("parity", "run", "--length", 8, "--json")
    assert compared.code == 0 and all(row["pass"] for row in json.loads(compared.out))


def test_eval_takes_other_data_and_says_when_it_does_not_fit(command, job):
    assert command(*TRAIN, "--set", "training.steps=1").code == 0
    own = json.loads(command("eval", "run", "--backend", "numpy", "--json").out)
    (job / "other.toml").write_text((job / "job.toml").read_text().replace("held_out = 200", "held_out = 400"))
    other = json.loads(command("eval", "run", "--data", "other.toml", "--backend", "numpy", "--json").out)
    same = json.loads(command("eval", "run", "--set", "data.held_out=400", "--backend", "numpy", "--json").out)
    assert other["scores"] == same["scores"] != own["scores"] and other["data"]["held_out"] == 400
    assert "expected a value of the data" in command("eval", "run", "--set", "model.d_input=4").err
    (job / "text.toml").write_text('[data]\nkind = "text"\nfiles = "x.fna"\nlength = 16\nbatch = 2\n')
    wrong = command("eval", "run", "--data", "text.toml")
    assert wrong.code == 2 and "the data is for a model with vocab_size=" in wrong.err


@pytest.mark.parametrize("arguments, words", [
    (("trian",), "Did you mean 'train'"),
    (("train",), "CONFIG"),
    (("train", "job.toml", "--nonsense"), "--nonsense"),
    (("train", "job.toml", "--steps", "many"), "--steps"),
    (("train", "x.fna"), "ends in .toml or .json"),
    (("train", "broken.toml"), "broken.toml: is no TOML.*line 2"),
    (("train", "job.toml", "--set", "model.family=hyena_dan"), "did you mean hyena_dna"),
    (("train", "job.toml", "--out", "x.fna/run"), "x.fna"),
    (("train", "job.toml", "--set", "optimizer.name=sdg"), "received 'sdg'; did you mean 'sgd'"),
    (("train", "job.toml", "--backend", "nunpy"), "got 'nunpy'; did you mean 'numpy'"),
    (("train", "job.toml", "--resume", "--overwrite"), "--resume or --overwrite, received both"),
    (("mad", "--layers", "gru", "--resume", "--overwrite"), "--resume or --overwrite, received both"),
    (("generate", "run", "--length", "-5"), "--length"),
    (("report", "."), "is no run"),
    (("eval", "none"), "is no run"),
    (("plan", "none.toml"), "no such file"),
])
def test_misuse(command, job, arguments, words):
    (job / "broken.toml").write_text("seed = 1\nseed = = 2\n")
    done = command(*arguments)
    assert done.code == 2 and re.search(words, done.err), done
    assert "Traceback" not in done.err and not done.out


def test_a_folder_that_cannot_be_written(command, job):
    if os.geteuid() == 0:
        place = "/proc/ember"                                # even root makes no folder there
    else:
        (job / "closed").mkdir(mode=0o500)
        place = job / "closed" / "run"
    done = command(*TRAIN[:2], "--backend", "numpy", "--out", place)
    assert done.code == 2 and done.err.startswith("ember: ") and str(place) in done.err


def test_a_file_of_the_run_that_cannot_be_written_is_named(command, job):
    assert command(*TRAIN).code == 0
    names = ("metrics.csv", "summary.json", "model.safetensors", "loss.png", "model_card.md")
    for name in names:
        (job / "run" / name).unlink()
        (job / "run" / name).mkdir()
        done = command(*TRAIN, "--resume")
        assert done.code == 2 and re.fullmatch(rf"ember: \S*{re.escape(name)}: cannot be written: .*make room.*--resume\n", done.err), done
        (job / "run" / name).rmdir()
    assert not list((job / "run").glob(".*.tmp"))
    done = command(*TRAIN, "--resume")
    assert done.code == 0 and "nothing is left to train: 4 updates are done, of 4; --steps N goes on" in done.out
    assert all((job / "run" / name).stat().st_size for name in names)


def test_a_run_that_is_past_the_updates_asked_for_stays_as_it_is(command, job):
    assert command(*TRAIN).code == 0
    before = {p: p.read_bytes() for p in (job / "run").rglob("*") if p.is_file()}
    done = command(*TRAIN, "--resume", "--steps", 2)
    assert done.code == 2 and re.search("run: 4 updates are done, more than the 2 asked for; nothing was changed: --steps 4 keeps", done.err)
    assert {p: p.read_bytes() for p in (job / "run").rglob("*") if p.is_file()} == before
    assert command(*TRAIN, "--resume").code == 0


def test_no_other_run_comes_in_before_the_card_is_written(command, job, monkeypatch):
    def write(path, real=card.write):
        with pytest.raises(ConfigError, match="is training in this folder"):
            FolderLock(path)
        return real(path)
    monkeypatch.setattr(card, "write", write)
    assert command(*TRAIN).code == 0
    FolderLock(job / "run").release()


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
def test_a_loss_that_is_no_number_is_code_3(command):
    done = command(*TRAIN, "--set", "optimizer.rate=1e30")
    assert done.code == 3 and "lower the learning rate" in done.err


def test_ctrl_c_is_code_130(job):
    code = "from ember_ml.cli import main; main(['train', 'job.toml', '--backend', 'numpy', '--out', 'run', '--set', 'training.steps=100000'])"
    running = subprocess.Popen([sys.executable, "-c", code], cwd=job, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    metrics, end = job / "run/metrics.jsonl", time.monotonic() + 60
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < end:
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 130 and "Traceback" not in errors


class _Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("terminal, no_color, live", [(True, "", True), (True, "1", False), (False, "", False)])
def test_a_bar_on_a_terminal_and_lines_elsewhere(monkeypatch, terminal, no_color, live):
    shown = _Terminal() if terminal else io.StringIO()
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setattr(sys, "stdout", shown)
    output = Output()
    assert output.live == live and isinstance(output.console, Console)
    bar = display.TrainingDisplay(4, "base", True, 2, output)
    trainer = type("Trainer", (), {"progress": type("Progress", (), {"step": 0, "tokens": 0})})
    bar.start(trainer)
    for step in range(1, 5):
        bar.step({"step": step, "tokens": 10 * step, "loss": 1.0, "rate": 0.1, "tokens_per_second": 5.0, "memory": 2**20})
    bar.end({})
    text = shown.getvalue()
    assert ("\x1b[" in text) == live
    if not live:
        assert [line[:13] for line in text.splitlines()] == ["step      2/4", "step      4/4"]
        assert "1.4427 bits per base" in text and text.splitlines()[0].endswith("4 s left")


def test_plan(command):
    done = command("plan", "job.toml", "--backend", "numpy", "--probe", "--set", "data.batch=8", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["parameters"] == sum(part["parameters"] for part in found["parts"][:-1]) and found["fits"]
    assert [m["batch"] for m in found["from"]] == [2, 8] and found["probe"]["batch"] == 8 and found["probe"]["seconds"] > 0
    large = command("plan", "job.toml", "--backend", "numpy", "--set", "model.d_inner=1000000000")
    assert large.code == 1 and "it does not fit" in large.out and "nothing was run" in large.out


def test_data(command, job):
    found = json.loads(command("data", "job.toml", "--json").out)
    assert found["lengths"]["total"] == 3000 and found["task"] == "next_token" and found["files"][0]["name"] == "x.fna"
    shown = command("data", "job.toml", "--set", "data.length=32")
    assert shown.code == 0 and "3,000 in all" in shown.out and "SHA-256" in shown.out
    (job / "empty.toml").write_text("seed = 1\n")
    assert "has no table [data]" in command("data", "empty.toml").err


def test_a_run_that_keeps_its_best_weights_tells_their_score(command, job):
    done = command(*TRAIN, "--set", "training.final=best", "--set", "optimizer.rate=0.3", "--set", "training.eval_every=1", "--json")
    assert done.code == 0, done.err
    best = min(row["eval"]["bits"] for row in map(json.loads, (job / "run/metrics.jsonl").read_text().splitlines()) if "eval" in row)
    assert json.loads(done.out)["held_out"]["bits"] == best
    assert f"| this model | {best:.4f} |" in (job / "run/model_card.md").read_text()
    assert json.loads(command("eval", "run", "--backend", "numpy", "--json").out)["scores"]["bits"] == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("error, told", [(MemoryError("Unable to allocate 8 GiB"), True), (RuntimeError("CUDA out of memory. Tried\nmore"), True),
                                         (RuntimeError("[malloc] Unable to allocate 9 bytes."), True), (RuntimeError("a fault"), False)])
def test_out_of_memory_says_what_to_do(command, monkeypatch, error, told):
    from ember_ml.cli import train

    def fail(*_):
        raise error
    monkeypatch.setattr(train, "run", fail)
    if not told:
        with pytest.raises(RuntimeError, match="a fault"):
            command(*TRAIN)
        return
    done = command(*TRAIN)
    assert done.code == 2 and "out of memory" in done.err and "ember plan" in done.err and done.err.count("\n") == 1
