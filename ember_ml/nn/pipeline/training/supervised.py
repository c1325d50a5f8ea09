"""Supervised training from a run's configuration: data, model, optimiser and trainer put together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext

from ember_ml import autodiff, data, nn
from ember_ml.backend import using
from ember_ml.nn.models.base import Model
from ember_ml.nn.moe import token_classes
from ember_ml.nn.pipeline.training.config import RunConfig, build_optimizer
from ember_ml.nn.pipeline.training.run_folder import RunFolder
from ember_ml.nn.pipeline.training.trainer import Trainer
from ember_ml.ops import random, tensor


#: largest vocabulary whose tokens are classes that experts are counted by
_CLASSES = 64


def next_token_loss(model: Model, inputs, targets):
    """Mean cross-entropy in nats of the next token: inputs and targets (B, L). Experts are counted by the token they work on."""
    vocabulary = getattr(model.config, "vocab_size", 0) or 0
    with token_classes(inputs, vocabulary) if 0 < vocabulary <= _CLASSES else nullcontext():
        return nn.losses.cross_entropy(model(inputs)[0], targets)


def evaluate_bits(model: Model, windows: Iterable, compiled: Callable | None = None) -> float:
    """Mean bits per token over windows of (inputs, targets), each (B, L) arrays."""
    device, total, count = next(iter(model.tensors().values())).device, 0.0, 0
    for inputs, targets in windows:
        x, y = tensor(inputs, device=device), tensor(targets, device=device)
        loss = compiled(model.tensors(), x, y) if compiled else next_token_loss(model, x, y)
        total += loss.item() * targets.size
        count += targets.size
    return total / count / math.log(2.0)


class SupervisedTraining:
    """A training run described by a RunConfig; a stage of a Pipeline, too: called, it trains and returns the model.

    Args:
        run: the configuration. folder: where to log and save. resume: go on from the folder's last checkpoint.
        watch: functions called with each logged row.

    Attributes: data, model, trainer.

    Raises ConfigError for tables that do not fit, MissingExtra for data whose package is missing.
    """

    def __init__(self, run: RunConfig, folder: RunFolder | None = None, resume: bool = False,
                 watch: Iterable[Callable[[dict], None]] = ()):
        self.run = run
        with using(run.backend) if run.backend else nullcontext():
            self.data = data.open_source(run.data, run.seed)
            fields = {"family": "model", "vocab_size": self.data.vocab_size, **run.model}
            self.model = Model.from_config(fields, key=random.key(run.seed))
        self.trainer = Trainer(self.model, next_token_loss, build_optimizer(run.optimizer), self.data.batch, run.training,
                               run.seed, folder, self._evaluate, watch)
        self._compiled = None
        if resume:
            self.trainer.resume()

    def __call__(self, _=None) -> Model:
        self.trainer.train()
        return self.model

    def _evaluate(self, model: Model) -> dict[str, float]:
        if self._compiled is None and self.trainer.runtime.compiles == "step":
            def pure(tensors, x, y):
                with model.using(tensors):
                    return next_token_loss(model, x, y)
            self._compiled = autodiff.compile(pure)
        return {"bits": evaluate_bits(model, self.data.held_out(), self._compiled)}
