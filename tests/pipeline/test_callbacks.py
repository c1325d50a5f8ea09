"""Callbacks fire, all of them, in order, also when training ends badly; the best and the newest checkpoints stay."""

import json

import numpy as np
import pytest

import ember_ml as em
from ember_ml import nn
from ember_ml.errors import WeightsError
from ember_ml.nn import optimizers
from ember_ml.nn.pipeline.training import Callback, RunFolder, Trainer, TrainingConfig
from ember_ml.nn.pipeline.training.progress import Progress


class Weight(nn.Module):
    """y = w: the smallest model there is."""

    def __init__(self):
        self.w = em.tensor([2.0])


class Ear(Callback):
    def __init__(self):
        self.heard = []

    def start(self, trainer):
        self.heard.append(("start", trainer.progress.step))

    def step(self, row):
        self.heard.append(("step", row["step"], set(row)))

    def evaluate(self, row):
        self.heard.append(("evaluate", row["step"], row["eval"]))

    def checkpoint(self, path, step):
        self.heard.append(("checkpoint", step, path.name, path.exists()))

    def end(self, row):
        self.heard.append(("end", row.get("step")))


def trainer(config, scores=None, folder=None, loss=lambda m, x: (m.w * x).sum(), **more):
    evaluate = scores and (lambda model: {"score": scores[t.progress.step]})
    t = Trainer(Weight(), loss, optimizers.SGD(optimizers.SGDConfig(rate=0.1)), lambda i: (np.ones(1, np.float32),), config, folder=folder,
                evaluate=evaluate, **more)
    return t


@pytest.fixture(autouse=True)
def numpy_engine():
    with em.using("numpy"):
        yield


def test_every_event_reaches_every_callback_in_order(tmp_path):
    first, second = Ear(), Ear()
    t = trainer(TrainingConfig(steps=5, log_every=2, eval_every=3, checkpoint_every=2), {3: 1.0, 5: 2.0}, RunFolder(tmp_path / "r"),
                callbacks=[first, second])
    t.train()
    row = {"step", "seconds", "tokens", "tokens_per_second", "memory", "loss", "rate", "grad_norm"}
    saved = [("checkpoint", n, f"step-{n}.safetensors", True) for n in (2, 3, 4, 5)]
    assert first.heard == second.heard == [
        ("start", 0), ("step", 2, row), saved[0], ("evaluate", 3, {"score": 1.0}), saved[1], ("step", 4, row), saved[2], ("step", 5, row),
        ("evaluate", 5, {"score": 2.0}), saved[3], ("end", 5)]
    assert [json.loads(line)["step"] for line in (tmp_path / "r/metrics.jsonl").read_text().splitlines()] == [2, 3, 4, 5, 5]


def test_end_is_told_when_training_fails():
    ear = Ear()
    with pytest.raises(FloatingPointError):
        trainer(TrainingConfig(steps=3, log_every=1), loss=lambda m, x: (m.w * float("nan")).sum(), callbacks=[Callback(), ear]).train()
    assert ear.heard == [("start", 0), ("end", None)]


def test_what_a_callback_raises_ends_the_training():
    class Stop(Callback):
        def step(self, row):
            raise RuntimeError("enough")

    t = trainer(TrainingConfig(steps=9, log_every=2), callbacks=[Stop()])
    with pytest.raises(RuntimeError, match="enough"):
        t.train()
    assert t.progress.step == 2


@pytest.mark.parametrize("higher, best", [(False, 2), (True, 3)])
def test_the_best_and_the_newest_checkpoints_stay(tmp_path, higher, best):
    nan = float("nan")
    scores = {1: 5.0, 2: 1.0, 3: 7.0, 4: 7.0, 5: nan, 6: 2.0}
    folder = RunFolder(tmp_path / "r")
    trainer(TrainingConfig(steps=6, eval_every=1, checkpoint_every=2, keep=2), scores, folder, higher=higher).train()
    assert folder.checkpoints().steps() == sorted({best, 4, 6})
    assert (tmp_path / "r/checkpoints/best.safetensors").resolve().name == f"step-{best}.safetensors"
    assert (tmp_path / "r/checkpoints/last.safetensors").resolve().name == "step-6.safetensors"
    t = trainer(TrainingConfig(steps=6), scores, RunFolder(tmp_path / "r", resume=True))
    t.resume()
    assert t.progress.best == best and t.progress.waited == 6 - best and t.progress.score == scores[best]


def test_progress_comes_back_as_it_was_and_refuses_others():
    there = Progress(step=7, tokens=99, score=0.25, best=5, waited=1)
    assert Progress.from_text(there.to_text(), "f") == there
    for text in ("", "[]", '{"step": -1}', '{"stop": 3}'):
        with pytest.raises(WeightsError, match="f: does not tell where the run stood"):
            Progress.from_text(text, "f")
