"""What goes wrong around a run: a full disk, damaged checkpoints, NaN, Ctrl-C, two runs in one folder, data that changed.

Each ends in an error that says what to do, with what was saved before whole; and the run that goes on ends as if nothing had been.
"""

import dataclasses
import errno
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import ember_ml as em
from ember_ml import nn
from ember_ml.errors import ConfigError, DataError, StorageError, WeightsError
from ember_ml.nn import optimizers
from ember_ml.nn.pipeline.training import Callback, RunConfig, RunFolder, Trainer, TrainingConfig
from ember_ml.nn.pipeline.training import config as configs
from ember_ml.nn.pipeline.training.interrupt import Interrupted
from ember_ml.nn.pipeline.training.lock import FolderLock
from ember_ml.nn.pipeline.training.supervised import SupervisedTraining
from ember_ml.registry import from_dict
from ember_ml.weights import atomic

ROOT = Path(__file__).resolve().parents[2]


class Map(nn.Module):
    """y = x W, enough numbers that a checkpoint has a size."""

    def __init__(self):
        self.w = em.random.normal(em.random.key(0), (20, 20))


def batch(i):
    return (np.random.default_rng(i).normal(size=(4, 20)).astype(np.float32),)


def trainer(folder, steps=12, batch=batch, callbacks=(), resume=False, **fields):
    config = TrainingConfig(steps=steps, log_every=1, checkpoint_every=3, **fields)
    t = Trainer(Map(), lambda m, x: em.ops.square(em.ops.matmul(x, m.w)).mean(), optimizers.AdamW(optimizers.AdamWConfig(rate=1e-2)), batch,
                config, folder=RunFolder(folder, resume=resume), callbacks=callbacks)
    if resume:
        t.resume()
    return t


def result(folder):
    """The last checkpoint's bytes and the losses of all rows."""
    place = RunFolder(folder, resume=True)
    place.lock.release()
    return (folder / "checkpoints/last.safetensors").read_bytes(), [(r["step"], r["loss"]) for r in place.rows()]


@pytest.fixture(autouse=True)
def numpy_engine():
    with em.using("numpy"):
        yield


@pytest.fixture
def straight(tmp_path):
    """What a run that nothing happened to ends with."""
    trainer(tmp_path / "straight").train()
    return result(tmp_path / "straight")


def goes_on(folder, straight):
    trainer(folder, resume=True).train()
    assert result(folder) == straight


@pytest.mark.parametrize("save, chunk", [(1, 0), (3, 0), (3, 2)])
def test_a_disk_that_is_full_in_the_middle_of_a_save(tmp_path, straight, monkeypatch, save, chunk):
    saves, real = [], atomic.replace

    def full(path, chunks):
        saves.append(path)

        def some():
            for n, part in enumerate(chunks):
                if len(saves) == save and n == chunk:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                yield part
        real(path, some())

    monkeypatch.setattr("ember_ml.weights.replace", full)
    with pytest.raises(StorageError, match=rf"step-{3 * save}.safetensors: cannot be written: No space left on device.*make room.*--resume"):
        trainer(tmp_path / "run").train()
    left = sorted(p.name for p in (tmp_path / "run/checkpoints").iterdir())
    assert left == {1: [], 3: ["last.safetensors", "step-3.safetensors", "step-6.safetensors"]}[save]      # no temporary file either
    monkeypatch.undo()
    if save > 1:
        goes_on(tmp_path / "run", straight)


def test_a_limit_of_the_operating_system(tmp_path, straight):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    t = trainer(tmp_path / "run")
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))         # bytes a file may have: the first rows do, a checkpoint does not
    try:
        with pytest.raises(StorageError, match="step-3.safetensors: cannot be written: File too large"):
            t.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert t.folder.checkpoints().steps() == []
    RunFolder(tmp_path / "run", overwrite=True).lock.release()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_log_that_cannot_grow(tmp_path, straight):
    class Full(Callback):
        def checkpoint(self, path, step):
            if step == 6:
                log = path.parent.parent / "metrics.jsonl"
                log.rename(log.with_name("kept"))
                log.symlink_to("/dev/full")

    with pytest.raises(StorageError, match="metrics.jsonl: cannot be written: No space left"):
        trainer(tmp_path / "run", callbacks=[Full()]).train()
    os.replace(tmp_path / "run/kept", tmp_path / "run/metrics.jsonl")
    goes_on(tmp_path / "run", straight)


def cut(data):
    return data[:-100]


def flip(data):
    return data[:-100] + bytes([data[-100] ^ 1]) + data[-99:]


def zero(data):
    return bytes(len(data))


@pytest.mark.parametrize("damage", [cut, flip, zero, lambda data: b""], ids=["cut", "flip", "zero", "empty"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, straight, damage):
    trainer(tmp_path / "run", steps=9).train()
    newest = tmp_path / "run/checkpoints/step-9.safetensors"
    newest.write_bytes(damage(newest.read_bytes()))
    with pytest.warns(UserWarning, match="step-9.safetensors.*set aside, and the checkpoint before it is taken"):
        t = trainer(tmp_path / "run", resume=True)
    assert t.progress.step == 6 and [r["step"] for r in t.folder.rows()] == [1, 2, 3, 4, 5, 6]
    t.train()
    assert result(tmp_path / "run") == straight
    assert (tmp_path / "run/checkpoints/step-9.safetensors.damaged").exists()


def test_without_a_whole_checkpoint_nothing_goes_on(tmp_path):
    trainer(tmp_path / "run", steps=6).train()
    for path in (tmp_path / "run/checkpoints").glob("step-*"):
        path.write_bytes(cut(path.read_bytes()))
    with pytest.warns(UserWarning), pytest.raises(WeightsError, match="holds no whole checkpoint.*step-3.*truncated"):
        trainer(tmp_path / "run", resume=True)


def spoilt(i):
    (x,) = batch(i)
    if i == 7:
        x[2, 5] = np.nan
    return (x,)


@pytest.mark.parametrize("batches, words", [
    (spoilt, r"loss of update 8 is nan; it came with batch 7.*not finite \(array 0 of batch 7\): mend the data.*step-6.safetensors"),
    (lambda i: (batch(i)[0] * np.float32(1e25 if i == 7 else 1),), r"loss of update 8 is inf; it came with batch 7.*finite: lower the learning rate"),
    (lambda i: (batch(i)[0] * np.float32(1e16 if i == 7 else 1),), r"norm of the gradients of update 8 is inf; it came with batch 7")])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_nan_names_its_batch_and_is_never_saved(tmp_path, straight, batches, words):
    t = trainer(tmp_path / "run", batch=batches)
    t.config = TrainingConfig(steps=12, log_every=10, checkpoint_every=3)
    with pytest.raises(FloatingPointError, match=words):
        t.train()
    assert t.folder.checkpoints().steps() == [3, 6] and t.folder.rows() == []
    t.folder.lock.release()
    trainer(tmp_path / "run", resume=True).train()
    assert result(tmp_path / "run")[0] == straight[0]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("prefetch", [0, 2])
def test_nan_among_accumulated_batches(tmp_path, prefetch):
    t = trainer(tmp_path / "run", batch=spoilt, accumulate=3, prefetch=prefetch)
    with pytest.raises(FloatingPointError, match=r"loss of update 3 is nan; it came with batch 6, 7, 8.*array 0 of batch 7"):
        t.train()
    assert not [thread for thread in threading.enumerate() if thread.name == "ember-prefetch"]


class Press(Callback):
    """Presses Ctrl-C."""

    def __init__(self, at):
        self.at = at

    def step(self, row):
        if row["step"] == self.at:
            os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_saves_and_tells_how_to_go_on(tmp_path, straight):
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match="after update 7, which was saved in .*run; the same command with --resume") as told:
        trainer(tmp_path / "run", callbacks=[Press(7)]).train()
    assert isinstance(told.value, KeyboardInterrupt) and signal.getsignal(signal.SIGINT) is handler
    assert (tmp_path / "run/checkpoints/last.safetensors").resolve().name == "step-7.safetensors"
    goes_on(tmp_path / "run", straight)


def test_ctrl_c_twice_ends_at_once(tmp_path):
    with pytest.raises(KeyboardInterrupt) as told:
        trainer(tmp_path / "run", callbacks=[Press(7), Press(7)]).train()
    assert not isinstance(told.value, Interrupted)


def test_ctrl_c_at_the_command(tmp_path):
    (tmp_path / "x.fna").write_text(">x\n" + "".join(np.random.default_rng(1).choice(list("ACGT"), 3000)) + "\n")
    (tmp_path / "job.toml").write_text("""
data = { kind = "dna", fasta = "x.fna", length = 16, batch = 2, held_out = 200 }
model = { head = "tied", blocks = [{ d_input = 8, layer = "gated_mlp" }] }
optimizer = { name = "adamw" }
training = { steps = 1_000_000, log_every = 1 }
""")
    process = subprocess.Popen([sys.executable, "-c", "from ember_ml.cli import main; main()", "train", "job.toml", "--out", "run", "--backend", "numpy"],
                               cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log, deadline = tmp_path / "run/metrics.jsonl", time.monotonic() + 120
    while not (log.exists() and log.stat().st_size) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 130, told
    assert told.startswith("ember: train: interrupted after update") and "--resume" in told and "Traceback" not in told
    assert RunFolder(tmp_path / "run", resume=True).checkpoints().steps()


def test_two_runs_in_one_folder(tmp_path):
    """The second is refused as long as the first one lives, however that ends."""
    tell, ready = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(60)                                     # whatever happens to the test, this process does not stay
        lock = FolderLock(tmp_path)
        os.write(ready, b".")
        while lock:
            signal.pause()
    try:
        os.read(tell, 1)
        (tmp_path / "config.toml").write_text("")
        for again in ({}, {"resume": True}, {"overwrite": True}):
            with pytest.raises(ConfigError, match=f"process {child} is training in this folder"):
                RunFolder(tmp_path, **again)
            assert (tmp_path / "config.toml").exists()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    RunFolder(tmp_path, overwrite=True)


def test_a_run_that_ended_lets_others_in(tmp_path):
    t = trainer(tmp_path / "run")
    with pytest.raises(ConfigError, match=f"process {os.getpid()} is training"):
        FolderLock(tmp_path / "run")
    t.train()
    FolderLock(tmp_path / "run")


def test_overwrite_takes_nothing_from_a_folder_that_holds_no_run(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    folder = RunFolder(tmp_path, overwrite=True)
    folder.config.write_text("")
    assert (tmp_path / "thesis.txt").exists()


def dna(folder, fasta, resume=False):
    run = from_dict(RunConfig, {
        "data": {"kind": "dna", "fasta": str(fasta), "length": 16, "batch": 2, "held_out": 100}, "optimizer": {"name": "sgd"},
        "model": {"blocks": [{"d_input": 4, "layer": "mlp"}], "head": "tied"}, "training": {"steps": 4 if resume else 2}, "backend": "numpy"})
    return SupervisedTraining(run, RunFolder(folder, resume=resume), resume)


def test_data_that_changed_are_refused_at_resume(tmp_path):
    fasta = tmp_path / "x.fna"
    bases = "".join(np.random.default_rng(1).choice(list("ACGT"), 600))
    fasta.write_text(f">x\n{bases}\n")
    dna(tmp_path / "run", fasta)()
    fasta.write_text(f">x\n{bases[:-1]}{'A' if bases[-1] != 'A' else 'C'}\n")
    with pytest.raises(DataError, match="x.fna: has changed since the run began.*put the old data back, or start a new run"):
        dna(tmp_path / "run", fasta, resume=True)
    fasta.write_text(f">x\n{bases}")                          # ends in the middle of its last line
    with pytest.raises(DataError, match="604 bytes then, 603 now"):
        dna(tmp_path / "run", fasta, resume=True)
    fasta.write_text(f">x\n{bases}\n")
    stage = dna(tmp_path / "run", fasta, resume=True)
    assert stage.trainer.progress.step == 2
    stage()
    assert stage.trainer.progress.step == 4


def test_a_resumed_run_keeps_the_order_of_its_data(tmp_path):
    (tmp_path / "x.fna").write_text(">x\n" + "ACGTTGCA" * 80)
    stage = dna(tmp_path / "run", tmp_path / "x.fna")
    configs.write(stage.folder.config, stage.run)
    stage()
    for change, words in (({"data": {**stage.run.data, "batch": 3}}, "batch was 2, is 3"), ({"seed": 8}, "seed was 0, is 8")):
        with pytest.raises(ConfigError, match=f"resume: the data would not come as the run began: {words}; change that back"):
            SupervisedTraining(dataclasses.replace(stage.run, **change), RunFolder(tmp_path / "run", resume=True), resume=True)
    dna(tmp_path / "run", tmp_path / "x.fna", resume=True)()


def test_a_data_file_without_its_last_newline_is_read_whole(tmp_path):
    bases = "".join(np.random.default_rng(1).choice(list("ACGT"), 600))
    for name, text in (("a", f">x\n{bases}\n"), ("b", f">x\n{bases}")):
        (tmp_path / name).write_text(text)
    a, b = (dna(tmp_path / f"run-{n}", tmp_path / n).data for n in "ab")
    assert all(np.array_equal(x, y) for x, y in zip(a.batch(3), b.batch(3)))


@pytest.mark.parametrize("score", [np.float32(1.5), np.array(1.5), 1.5])
def test_a_score_may_be_a_number_of_any_library(tmp_path, score):
    t = trainer(tmp_path / "run", steps=3)
    for t.evaluate in (lambda m: {"x": score}, lambda m: {"x": em.tensor(1.5)}):
        t.progress.step = 0
        t.train()
    assert t.folder.rows()[-1]["eval"] == {"x": 1.5} and t.progress.score == 1.5


@pytest.mark.parametrize("scores", [3.0, {"x": "good"}, {"x": None}, None])
def test_scores_that_are_no_numbers_are_refused(tmp_path, scores):
    t = trainer(tmp_path / "run", steps=1)
    t.evaluate = lambda m: scores
    with pytest.raises(ConfigError, match="expected `evaluate` to return numbers by name.*got " + str(scores)[:3]):
        t.train()
