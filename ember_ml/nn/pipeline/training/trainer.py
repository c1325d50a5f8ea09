"""The trainer: updates, evaluation, logging and checkpoints, on every engine, resumable to the bit."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable

from ember_ml.autodiff import tree
from ember_ml.nn.module import Module
from ember_ml.nn.optimizers.base import Optimizer
from ember_ml.nn.pipeline.training.callbacks import Callback
from ember_ml.nn.pipeline.training.config import TrainingConfig
from ember_ml.nn.pipeline.training.progress import Progress
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
        evaluate: `evaluate(model) -> {name: number}`, run every eval_every updates and at the end. The first number decides which
            checkpoint is the best one.
        higher: whether more of that number is better.
        count: `count(arrays)`, the number of targets in a batch; None for the number of elements of its first array.
        callbacks: told of all that happens, see Callback.

    A row is a dict: step (updates done), seconds (of training, over all sittings), tokens (targets seen so far), tokens_per_second
    (since the last row), memory (peak, bytes) and the metrics of the step, matrices among them only where it is evaluated; or step,
    seconds and eval (what `evaluate` gave).

    Attributes: state (a tree of tensors) and progress: all that the next update depends on, and what a checkpoint holds.
    """

    def __init__(self, model: Module, loss: Callable, optimizer: Optimizer, batch: Callable, config: TrainingConfig,
                 seed: int = 0, folder: RunFolder | None = None, evaluate: Callable | None = None, higher: bool = False,
                 count: Callable | None = None, callbacks: Iterable[Callback] = ()):
        self.model, self.optimizer, self.batch, self.config = model, optimizer, batch, config
        self.folder, self.evaluate, self.higher, self.callbacks = folder, evaluate, higher, list(callbacks)
        self.count = count or (lambda arrays: arrays[0].size)
        like = next(iter(model.tensors().values()))
        self.device, self.runtime = like.device, like.backend.runtime
        compile = config.compile if config.compile is not None else self.runtime.compiles == "step"
        self.step = make_step(model, loss, optimizer, config.clip, compile)
        self.state = initial_state(model, optimizer, random.key(seed, device=like.device))
        self.progress, self.seconds = Progress(), 0.0
        self.last: dict = {}

    def resume(self):
        """Goes back to the last checkpoint of the folder. Raises WeightsError if it does not fit the model."""
        self.state, self.progress = self.folder.checkpoints(self.config.keep).load(self.state, self.device)
        self.folder.rewind(self.progress.step)
        rows = self.folder.rows()
        self.seconds = rows[-1]["seconds"] if rows else 0.0

    def train(self) -> dict:
        """Runs the updates that are left. Returns the last row: the last evaluation's, or the last logged one's.

        Raises FloatingPointError, naming the update, if the loss is no finite number; the checkpoint before stays.
        """
        self.runtime.reset_peak_memory()
        self._tell("start", self)
        try:
            self._run()
        finally:
            self._tell("end", self.last)
        return self.last

    def install(self):
        """Puts the trained weights into the model."""
        self.model.update({**self.state["params"], **self.state["buffers"]})

    def _run(self):
        config, progress = self.config, self.progress
        began = time.perf_counter() - self.seconds
        since, seen = time.perf_counter(), progress.tokens
        while progress.step < config.steps:
            metrics = self._update()
            self.seconds = time.perf_counter() - began
            improved = False
            if self._due(config.log_every):
                self._log(metrics, (progress.tokens - seen) / (time.perf_counter() - since))
                since, seen = time.perf_counter(), progress.tokens
            if self.evaluate is not None and self._due(config.eval_every):
                improved = self._evaluate()
                since, seen = time.perf_counter(), progress.tokens
            self.seconds = time.perf_counter() - began
            if self.folder is not None and (improved or self._due(config.checkpoint_every)):
                path = self.folder.checkpoints(config.keep).save(self.state, progress)
                self._tell("checkpoint", path, progress.step)
        self.install()

    def _update(self) -> dict:
        """One update. Returns its metrics."""
        arrays = self.batch(self.progress.step)
        self.state, metrics = self.step(self.state, tuple(tensor(a, device=self.device) for a in arrays))
        self.runtime.synchronize([t.data for t in tree.tensors((self.state, metrics))])
        self.progress.step += 1
        self.progress.tokens += self.count(arrays)
        return metrics

    def _due(self, every: int) -> bool:
        return self.progress.step == self.config.steps or self.progress.step % every == 0

    def _log(self, metrics, rate: float):
        whole = self._due(self.config.eval_every)
        values = {name: value.item() if value.ndim == 0 else value.tolist() for name, value in metrics.items()
                  if value.ndim < 2 or whole}
        if not math.isfinite(values["loss"]):
            raise FloatingPointError(f"train: the loss of update {self.progress.step} is {values['loss']}; lower the learning rate, "
                                     "or set training.clip; the last checkpoint is from before")
        self._emit("step", {"step": self.progress.step, "seconds": self.seconds, "tokens": self.progress.tokens,
                            "tokens_per_second": rate, "memory": self.runtime.peak_memory(), **values})

    def _evaluate(self) -> bool:
        """Evaluates, and returns whether it is the best so far."""
        self.install()
        scores = self.evaluate(self.model)
        self._emit("evaluate", {"step": self.progress.step, "seconds": self.seconds, "eval": scores})
        return self.progress.judge(next(iter(scores.values())), self.higher)

    def _emit(self, event: str, row: dict):
        self.last = row
        if self.folder is not None:
            self.folder.log(row)
        self._tell(event, row)

    def _tell(self, event: str, *args):
        for callback in self.callbacks:
            getattr(callback, event)(*args)
