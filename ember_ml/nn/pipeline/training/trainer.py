"""The trainer: updates, evaluation, logging and checkpoints, on every engine, resumable to the bit."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable

from ember_ml.autodiff import tree
from ember_ml.nn.module import Module
from ember_ml.nn.optimizers.base import Optimizer
from ember_ml.nn.pipeline.training.config import TrainingConfig
from ember_ml.nn.pipeline.training.run_folder import RunFolder
from ember_ml.nn.pipeline.training.step import initial_state, make_step
from ember_ml.ops import random, tensor


class Trainer:
    """Trains a model by a number of updates.

    Args:
        model: its tensors say where to train. At the end it holds the trained weights.
        loss: `loss(model, *batch)` returning a scalar.
        optimizer: see `ember_ml.nn.optimizers`.
        batch: `batch(i)` gives the arrays of update i, a pure function, so that resuming needs no state of the data.
        config: see TrainingConfig.
        seed: of dropout.
        folder: where to log and save; None keeps everything in memory.
        evaluate: `evaluate(model) -> {name: number}`, run every eval_every updates and at the end.
        watch: functions called with each row that is logged: for progress bars and other displays.

    A row is a dict: step (updates done), seconds, tokens (seen so far), tokens_per_second (since the last row), memory
    (peak, bytes) and the metrics of the step, matrices among them only where it is evaluated; or step, seconds and eval (what
    `evaluate` gave).
    """

    def __init__(self, model: Module, loss: Callable, optimizer: Optimizer, batch: Callable, config: TrainingConfig,
                 seed: int = 0, folder: RunFolder | None = None, evaluate: Callable | None = None,
                 watch: Iterable[Callable[[dict], None]] = ()):
        self.model, self.optimizer, self.batch, self.config = model, optimizer, batch, config
        self.folder, self.evaluate, self.watch = folder, evaluate, tuple(watch)
        like = next(iter(model.tensors().values()))
        self.device, self.runtime = like.device, like.backend.runtime
        compile = config.compile if config.compile is not None else self.runtime.compiles == "step"
        self.step = make_step(model, loss, optimizer, config.clip, compile)
        self.state = initial_state(model, optimizer, random.key(seed, device=like.device))
        self.done, self.tokens = 0, 0

    def resume(self):
        """Goes back to the last checkpoint of the folder. Raises WeightsError if it does not fit the model."""
        self.state, self.done = self.folder.load_state(self.state, self.device)
        self.folder.rewind(self.done)
        rows = [r for r in self.folder.rows() if "tokens" in r]
        self.tokens = rows[-1]["tokens"] if rows else 0

    def train(self) -> dict:
        """Runs the updates that are left. Returns the last evaluation's row, or the last logged one.

        Raises FloatingPointError, naming the update, if the loss is no finite number; the checkpoint before stays.
        """
        config, started, last = self.config, time.perf_counter(), {}
        self.runtime.reset_peak_memory()
        since, tokens_since = started, 0
        while self.done < config.steps:
            arrays = self.batch(self.done)
            batch = tuple(tensor(a, device=self.device) for a in arrays)
            self.state, metrics = self.step(self.state, batch)
            self.runtime.synchronize([t.data for t in tree.tensors((self.state, metrics))])
            self.done += 1
            self.tokens += arrays[0].size
            tokens_since += arrays[0].size
            final = self.done == config.steps
            if final or self.done % config.log_every == 0:
                now = time.perf_counter()
                last = self._row(metrics, now - started, tokens_since / (now - since))
                since, tokens_since = now, 0
            if self.evaluate is not None and (final or self.done % config.eval_every == 0):
                self.install()
                last = {"step": self.done, "seconds": time.perf_counter() - started, "eval": self.evaluate(self.model)}
                self._emit(last)
                since = time.perf_counter()
            if self.folder is not None and (final or self.done % config.checkpoint_every == 0):
                self.folder.save_state(self.state, self.done)
        self.install()
        return last

    def install(self):
        """Puts the trained weights into the model."""
        self.model.update({**self.state["params"], **self.state["buffers"]})

    def _row(self, metrics, seconds: float, rate: float) -> dict:
        whole = self.done == self.config.steps or self.done % self.config.eval_every == 0
        values = {name: value.item() if value.ndim == 0 else value.tolist() for name, value in metrics.items()
                  if value.ndim < 2 or whole}
        row = {"step": self.done, "seconds": seconds, "tokens": self.tokens, "tokens_per_second": rate,
               "memory": self.runtime.peak_memory(), **values}
        if not math.isfinite(values["loss"]):
            raise FloatingPointError(f"train: the loss of update {self.done} is {values['loss']}; lower the learning rate, "
                                     "or set training.clip; the last checkpoint is from before")
        self._emit(row)
        return row

    def _emit(self, row: dict):
        if self.folder is not None:
            self.folder.log(row)
        for show in self.watch:
            show(row)
