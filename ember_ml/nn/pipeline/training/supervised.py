"""Supervised training from a run's configuration: data, model, optimiser and trainer put together."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from ember_ml import autodiff, data
from ember_ml.backend import using
from ember_ml.data.files import fingerprint
from ember_ml.errors import ConfigError, UnsupportedOp, WeightsError
from ember_ml.nn.adapters import adapt, adapters, fuse, save_peft
from ember_ml.nn.models.base import Model
from ember_ml.nn.pipeline.training.callbacks import Callback
from ember_ml.nn.pipeline.training.config import RunConfig, build_optimizer, read
from ember_ml.nn.pipeline.training.fit import check_fit, known_fields
from ember_ml.nn.pipeline.training.objectives import OBJECTIVES
from ember_ml.nn.pipeline.training.run_folder import RunFolder
from ember_ml.nn.pipeline.training.trainer import Trainer
from ember_ml.ops import random, tensor
from ember_ml.registry import to_dict
from ember_ml.tensor import EmberTensor


def model_fields(source, table: dict[str, Any]) -> dict[str, Any]:
    """The fields of the model of a run: those of its [model] table, and what the data source knows where they do not say otherwise."""
    return {"family": "model", **known_fields(source), **table}


def build_model(source, table: dict[str, Any], key: EmberTensor) -> Model:
    """The model of a [model] table. Raises ConfigError for a file beside other fields, or a model that does not take the data."""
    if "file" in table and len(table) > 1:
        raise ConfigError(f"[model]: expected file alone, since the file has the model's config; received {', '.join(table)} beside it")
    model = Model.load(table["file"]) if "file" in table else Model.from_config(model_fields(source, table), key=key)
    try:
        check_fit(model, source)
    except (ConfigError, UnsupportedOp) as e:
        raise type(e)(f"[model]{' file ' + table['file'] if 'file' in table else ''}: {e}") from None
    return model


def _start(run: RunConfig) -> list[Path]:
    """The files that a run starts from: no part of its checkpoints, which hold what is trained. Raises ConfigError for one that is not there."""
    named = {"[model] file": run.model.get("file"), "[adapter] weights": run.adapter.weights if run.adapter else None}
    for what, file in named.items():
        if file is not None and not Path(file).is_file():
            raise ConfigError(f"{what}: {file}: there is no such file")
    return [Path(file) for file in named.values() if file is not None]


def _check_order(before: RunConfig, now: RunConfig):
    """Raises ConfigError, naming the fields, if the batches of a run that goes on would not be those that it began with."""
    old, new = ({**{k: v for k, v in to_dict(run.data).items() if v is not None}, "seed": run.seed} for run in (before, now))
    changed = [f"{k} was {old.get(k)!r}, is {new.get(k)!r}" for k in {**old, **new} if old.get(k) != new.get(k)]
    if changed:
        raise ConfigError(f"resume: the data would not come as the run began: {'; '.join(changed)}; change that back, or start a new run "
                          "(one may begin from the weights of this one, see [model] file)")


class SupervisedTraining:
    """A training run described by a RunConfig; a stage of a Pipeline, too: called, it trains and returns the model.

    Args:
        run: the configuration. folder: where to log and save. resume: go on from the folder's last checkpoint.
        callbacks: told of all that happens.

    Attributes: run, with what the data decided written in; data, model, objective, trainer; report, which tensors `adapter.weights` gave; fused, how exactly LoRA was fused.

    Raises ConfigError for tables that do not fit, WeightsError for weights that do not, MissingExtra for data whose package is missing,
    DataError for a folder whose run began with other data or another model file. The folder is then as it was.
    """

    def __init__(self, run: RunConfig, folder: RunFolder | None = None, resume: bool = False, callbacks: Iterable[Callback] = ()):
        try:
            self._build(run, folder, resume, callbacks)
        except BaseException:
            if folder is not None:
                folder.abandon()
            raise

    def _build(self, run: RunConfig, folder: RunFolder | None, resume: bool, callbacks: Iterable[Callback]):
        if not isinstance(run, RunConfig):
            raise ConfigError(f"SupervisedTraining: expected a RunConfig, as ember_ml.nn.pipeline.training.config.read(\"job.toml\") gives; received {run!r}")
        with using(run.backend) if run.backend else nullcontext():
            self.data = data.open_source(run.data, run.seed)
            self.run = run = replace(run, data={**run.data, **getattr(self.data, "settled", {})})
            start = _start(run)
            if resume and folder.config.exists():
                _check_order(read(folder.config), run)
            files = [*self.data.fingerprint(), *fingerprint(start)]
            if folder is not None:
                folder.check_data(files)
            self.objective = OBJECTIVES[self.data.task]
            self.model = build_model(self.data, run.model, random.key(run.seed))
            self.report = None if run.adapter is None else adapt(self.model, run.adapter, random.fold_in(random.key(run.seed), 1))
        self.folder, self.fused = folder, None
        training = run.training if run.training.epochs is None else run.training.in_steps(self.data.per_epoch)
        self.trainer = Trainer(self.model, self.objective.loss, build_optimizer(run.optimizer), self.data.batch, training,
                               run.seed, folder, self._evaluate, self.objective.higher, self.objective.count, callbacks)
        self._compiled = None
        if resume:
            self.trainer.resume()
        if folder is not None:
            folder.begin()
            folder.remember_data(files)

    def __call__(self, _=None) -> Model:
        with self.folder.lock.held() if self.folder is not None else nullcontext():
            self.trainer.train()
            if adapters(self.model):
                self._fuse()
        return self.model

    def _fuse(self):
        """Keeps the adapter as peft's files, and leaves the model without it."""
        if self.folder is not None:
            save_peft(self.model, self.folder.path / "adapter", base=self.run.model.get("file"))
        probe = tensor(next(iter(self.data.held_out()))[0], device=self.trainer.device)
        try:
            self.fused = fuse(self.model, probe)
        except WeightsError as e:
            raise WeightsError(f"{e}; the adapter is saved{'' if self.folder is None else f' in {self.folder.path}/adapter'}") from None

    def _evaluate(self, model: Model) -> dict[str, float]:
        if self._compiled is None and self.trainer.runtime.compiles == "step":
            def pure(tensors, *batch):
                with model.using(tensors):
                    return self.objective.measure(model, *batch)
            self._compiled = autodiff.compile(pure)
        return self.objective.evaluate(model, self.data.held_out(), self._compiled)
