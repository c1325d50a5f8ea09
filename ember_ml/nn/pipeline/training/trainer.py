"""The trainer: updates, evaluation, logging and checkpoints, on every engine, resumable to the bit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext

from ember_ml.autodiff import tree
from ember_ml.data.prefetch import Prefetch
from ember_ml.errors import ConfigError
from ember_ml.nn.module import Module
from ember_ml.nn.optimizers.base import Optimizer
from ember_ml.nn.pipeline.training.accumulation import make_accumulating_step
from ember_ml.nn.pipeline.training.callbacks import Callback
from ember_ml.nn.pipeline.training.config import TrainingConfig
from ember_ml.nn.pipeline.training.guard import NanGuard, explain
from ember_ml.nn.pipeline.training.interrupt import Interrupted, deferred_interrupt
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
        batch: `batch(i)` gives the arrays of batch i, a pure function, so that resuming needs no state of the data. Update n takes
            the batches n accumulate ... (n + 1) accumulate - 1.
        config: see TrainingConfig.
        seed: of dropout.
        folder: where to log and save; None keeps everything in memory.
        evaluate: `evaluate(model) -> {name: number}` (of any library), run every eval_every updates and at the end. The first number decides which
            checkpoint is the best one.
        higher: whether more of that number is better.
        count: `count(arrays)`, the number of targets in a batch; None for the number of elements of its first array.
        callbacks: told of all that happens, see Callback.

    A row is a dict: step (updates done), seconds (of training, over all sittings), tokens (targets seen so far), tokens_per_second
    (since the last row), memory (peak, bytes) and the metrics of the step, matrices among them only where it is evaluated; or step,
    seconds and eval (what `evaluate` gave).

    Attributes: state (a tree of tensors) and progress: all that the next update depends on, and what a checkpoint holds. A state that
    someone has looked at keeps its values; one that nobody has may be overwritten by the next update.
    """

    def __init__(self, model: Module, loss: Callable, optimizer: Optimizer, batch: Callable, config: TrainingConfig,
                 seed: int = 0, folder: RunFolder | None = None, evaluate: Callable | None = None, higher: bool = False,
                 count: Callable | None = None, callbacks: Iterable[Callback] = ()):
        if config.steps is None:
            raise ConfigError("trainer: expected a number of updates, got epochs; use config.in_steps(batches in an epoch)")
        if config.patience is not None and evaluate is None:
            raise ConfigError("trainer: patience counts evaluations, and there is no `evaluate`")
        if not callable(loss) or not callable(batch):
            raise ConfigError(f"trainer: expected functions loss(model, *batch) and batch(i), received {type(loss).__name__} and {type(batch).__name__}")
        self.model, self.optimizer, self.batch, self.config = model, optimizer, batch, config
        self.folder, self.evaluate, self.higher, self.callbacks = folder, evaluate, higher, list(callbacks)
        self.count = count or (lambda arrays: arrays[0].size)
        like = next(iter(model.tensors().values()))
        self.device, self.runtime = like.device, like.backend.runtime
        compile = config.compile if config.compile is not None else self.runtime.compiles == "step"
        make = make_step if config.accumulate == 1 else make_accumulating_step
        self.step = make(model, loss, optimizer, config.clip, compile, config.ema, config.precision, config.recompute)
        self._initial = lambda: initial_state(model, optimizer, random.key(seed, device=like.device), config.ema)
        self.state = self._initial()
        self.progress, self.seconds, self.last = Progress(), 0.0, {}
        self._guard, self._best = NanGuard(), None

    @property
    def state(self) -> dict:
        self._check_state()
        self._private = False
        return self._state

    @state.setter
    def state(self, state: dict):
        self._state, self._private = state, False

    def _check_state(self):
        if not self._state:                                  # its memory was given away, see `make_step`
            raise RuntimeError("trainer: its last update was cut short and left no state; resume() goes back to the last checkpoint, a new "
                               "trainer begins anew")

    def resume(self):
        """Goes back to the newest whole checkpoint of the folder; where there is none, to the start.

        Raises WeightsError if it does not fit the model; the trainer is then as it was. ConfigError without a folder, or
        where more updates are done than are asked for.
        """
        if self.folder is None:
            raise ConfigError("resume: expected a trainer with a folder; pass folder=RunFolder(path, resume=True)")
        checkpoints = self.folder.checkpoints(self.config.keep)
        if checkpoints.steps():
            state, progress = checkpoints.load(self._state or self._initial(), self.device)
            if progress.step > self.config.steps:
                raise ConfigError(f"{self.folder.path}: {progress.step} updates are done, more than the {self.config.steps} asked for; nothing was changed: "
                                  f"--steps {progress.step} keeps the run as it is, a larger number goes on, --overwrite begins anew")
            self.state, self.progress = state, progress
            checkpoints.tidy(self.progress)                  # a run that was killed may not have come to it
        self._check_state()
        self.folder.rewind(self.progress.step)
        rows = self.folder.rows()
        self.seconds = rows[-1].get("seconds", 0.0) if rows else 0.0

    def train(self) -> dict:
        """Runs the updates that are left. Returns the last row: the last evaluation's, or the last logged one's.

        Raises:
            FloatingPointError: the loss or the gradient is no finite number. The message names the update and its batches; no checkpoint
                holds what came of it. StorageError: the folder cannot be written to.
            Interrupted (a KeyboardInterrupt): Ctrl-C; the state was saved.
        """
        self._check_state()
        with self.folder.lock.held() if self.folder is not None else nullcontext():
            if self.folder is not None:
                self.folder.begin()
            self.runtime.reset_peak_memory()
            self._tell("start", self)
            try:
                with self.runtime.long_run(), self._prefetched() as self._batch, deferred_interrupt() as asked:
                    self._run(asked)
            finally:
                self._tell("end", self.last)
        return self.last

    def install(self):
        """Puts the trained weights, or their moving average if there is one, into the model."""
        self.model.update({**self.state["params"], **self.state.get("average", {}), **self.state["buffers"]})

    @property
    def done(self) -> bool:
        """Whether nothing is left to do: all updates are made, or the patience is at its end."""
        patience = self.config.patience
        return self.progress.step >= self.config.steps or (patience is not None and self.progress.waited >= patience)

    def _run(self, asked: Callable[[], bool]):
        config, progress = self.config, self.progress
        began = time.perf_counter() - self.seconds
        since, seen = time.perf_counter(), progress.tokens
        while not self.done:
            metrics = self._update()
            log, judge, improved = self._due(config.log_every), self.evaluate is not None and self._due(config.eval_every), False
            if log or judge or self._due(config.checkpoint_every):
                self._check()
                self.seconds = time.perf_counter() - began
            if log:
                self._log(metrics, (progress.tokens - seen) / (time.perf_counter() - since))
            if judge:
                improved = self._evaluate()
            if log or judge:
                since, seen = time.perf_counter(), progress.tokens
            if self.folder is not None and (improved or self.done or self._due(config.checkpoint_every)):
                self._save()
            if asked() and not self.done:
                self._interrupt()
        self.install()
        if config.final == "best":
            self._install_best()

    def _prefetched(self):
        return Prefetch(self.batch, self.config.prefetch) if self.config.prefetch else nullcontext(self.batch)

    def _update(self) -> dict:
        """One update. Returns its metrics."""
        many = self.config.accumulate
        first = self.progress.step * many
        arrays = [self._batch(i) for i in range(first, first + many)]
        if not all(isinstance(a, (tuple, list)) for a in arrays):
            raise TypeError(f"trainer: expected batch(i) to return a tuple of arrays, such as (inputs, targets); received {type(arrays[0]).__name__}")
        counts = [self.count(a) for a in arrays]
        batches = (tuple(tensor(a, device=self.device) for a in batch) for batch in arrays)
        donate, batch = self._private, (next(batches),) if many == 1 else (batches, counts)
        self._state, metrics = self.step(self._state, *batch, donate=donate)
        self._private = True
        self.runtime.pace(lambda: [t.data for t in tree.tensors((self._state, metrics))])
        self.progress.step += 1
        self.progress.tokens += sum(counts)
        self._guard.note(self.progress.step, metrics)
        return metrics

    def _due(self, every: int) -> bool:
        return self.progress.step == self.config.steps or self.progress.step % every == 0

    def _check(self):
        """Raises FloatingPointError if a number since the last check is not finite."""
        found = self._guard.check()
        if found is not None:
            many, saved = self.config.accumulate, self.folder and self.folder.checkpoints().newest()
            batches = {i: self._batch(i) for i in range((found[0] - 1) * many, found[0] * many)}
            raise FloatingPointError(explain(*found, batches, saved))

    def _log(self, metrics, rate: float):
        whole = self._due(self.config.eval_every)
        values = {name: value.item() if value.ndim == 0 else value.tolist() for name, value in metrics.items()
                  if value.ndim < 2 or whole}
        self._emit("step", {"step": self.progress.step, "seconds": self.seconds, "tokens": self.progress.tokens,
                            "tokens_per_second": rate, "memory": self.runtime.peak_memory(), **values})

    def _evaluate(self) -> bool:
        """Evaluates, and returns whether it is the best so far."""
        self.install()
        found = self.evaluate(self.model)
        try:
            scores = {name: float(value) for name, value in found.items()}
        except (AttributeError, TypeError, ValueError):
            raise ConfigError(f"trainer: expected `evaluate` to return numbers by name, such as {{'bits': 1.5}}, got {found!r}") from None
        if not scores:
            raise ConfigError("trainer: expected `evaluate` to return at least one number by name, got none")
        improved = self.progress.judge(next(iter(scores.values())), self.higher)
        if improved and self.folder is None and self.config.final == "best":
            self._best = self.model.tensors()
        self._emit("evaluate", {"step": self.progress.step, "seconds": self.seconds, "eval": scores})
        return improved

    def _save(self):
        path = self.folder.save(self._state, self.progress, self.config.keep)
        self._tell("checkpoint", path, self.progress.step)

    def _interrupt(self):
        step = self.progress.step
        if self.folder is None:
            raise Interrupted(f"train: interrupted after update {step}; nothing was saved, as there is no folder")
        self._check()
        self._save()
        raise Interrupted(f"train: interrupted after update {step}, which was saved in {self.folder.path}; the same command with --resume "
                          "goes on from there")

    def _install_best(self):
        best = self.progress.best
        if self._best is not None:
            self.model.update(self._best)
        elif best is not None and best != self.progress.step and self.folder is not None:
            now, (self.state, _) = self.state, self.folder.checkpoints().load(self.state, self.device, best)
            self.install()
            self.state = now

    def _emit(self, event: str, row: dict):
        self.last = row
        if self.folder is not None:
            self.folder.log(row)
        self._tell(event, row)

    def _tell(self, event: str, *args):
        for callback in self.callbacks:
            getattr(callback, event)(*args)
