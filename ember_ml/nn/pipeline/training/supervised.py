"""Supervised training from a run's configuration: data, model, optimiser and trainer put together."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

from ember_ml import autodiff, data
from ember_ml.backend import using
from ember_ml.nn.models.base import Model
from ember_ml.nn.pipeline.training.callbacks import Callback
from ember_ml.nn.pipeline.training.config import RunConfig, build_optimizer
from ember_ml.nn.pipeline.training.objectives import OBJECTIVES
from ember_ml.nn.pipeline.training.run_folder import RunFolder
from ember_ml.nn.pipeline.training.trainer import Trainer
from ember_ml.ops import random


def model_fields(source, table: dict[str, Any]) -> dict[str, Any]:
    """The fields of the model of a run: those of its [model] table, and what the data source knows where they do not say otherwise."""
    known: dict[str, Any] = {"family": "model"}
    if getattr(source, "vocab_size", None):
        known["vocab_size"] = source.vocab_size
    elif getattr(source, "channels", None):
        known["inputs"] = source.channels
    if source.task == "classification":
        known |= {"head": "classifier", "outputs": source.classes}
    elif source.task == "regression":
        known |= {"head": "regressor", "outputs": source.outputs}
    return known | table


class SupervisedTraining:
    """A training run described by a RunConfig; a stage of a Pipeline, too: called, it trains and returns the model.

    Args:
        run: the configuration. folder: where to log and save. resume: go on from the folder's last checkpoint.
        callbacks: told of all that happens.

    Attributes: data, model, objective, trainer.

    Raises ConfigError for tables that do not fit, MissingExtra for data whose package is missing, DataError for a folder whose run
    began with other data.
    """

    def __init__(self, run: RunConfig, folder: RunFolder | None = None, resume: bool = False, callbacks: Iterable[Callback] = ()):
        self.run = run
        with using(run.backend) if run.backend else nullcontext():
            self.data = data.open_source(run.data, run.seed)
            if folder is not None:
                folder.remember_data(self.data.fingerprint())
            self.objective = OBJECTIVES[self.data.task]
            self.model = Model.from_config(model_fields(self.data, run.model), key=random.key(run.seed))
        training = run.training if run.training.epochs is None else run.training.in_steps(self.data.per_epoch)
        self.trainer = Trainer(self.model, self.objective.loss, build_optimizer(run.optimizer), self.data.batch, training,
                               run.seed, folder, self._evaluate, self.objective.higher, self.objective.count, callbacks)
        self._compiled = None
        if resume:
            self.trainer.resume()

    def __call__(self, _=None) -> Model:
        self.trainer.train()
        return self.model

    def _evaluate(self, model: Model) -> dict[str, float]:
        if self._compiled is None and self.trainer.runtime.compiles == "step":
            def pure(tensors, *batch):
                with model.using(tensors):
                    return self.objective.measure(model, *batch)
            self._compiled = autodiff.compile(pure)
        return self.objective.evaluate(model, self.data.held_out(), self._compiled)
