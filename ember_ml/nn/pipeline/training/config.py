"""The configuration of a training run, read from one TOML file."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from ember_ml.errors import ConfigError, show
from ember_ml.nn.adapters.run import AdapterConfig
from ember_ml.nn.optimizers import OPTIMIZERS
from ember_ml.nn.optimizers.base import Optimizer
from ember_ml.registry import Rate, Seed, Size, config, from_dict, read_table, to_dict, write_table

Positive = Annotated[float, pydantic.Field(gt=0.0)]


@config
class TrainingConfig:
    """How long and how to train.

    Args:
        steps: number of updates. epochs: passes over the data, instead of steps.
        eval_every, checkpoint_every, log_every: in updates; the last update is always evaluated and saved, and so is the best one.
        keep: how many of the newest checkpoints stay, beside the best.
        accumulate: batches an update, for updates by more than fits the memory at once; every target weighs the same.
        prefetch: batches that a thread makes ahead of time, for data that take long to read or lay out; 0: each when it is due.
        clip: largest global norm of the gradients; inf for no clipping, which None becomes: a file can say it.
        ema: decay of a moving average of the parameters, such as 0.999, which is what is evaluated and kept as the model. None: none.
        precision: "bfloat16" computes in it, with parameters, gradients and optimiser states in float32; None: as the model is.
        recompute: keep only each block's input for the gradient and compute its inside again: less memory, about a third more time.
        patience: end after so many evaluations without a better one; None: never.
        final: whose weights the model has in the end, those of the last update or of the best evaluation.
        compile: compile the step (or the loss) where the engine can; None for what pays there: yes on mlx, no elsewhere.
    """

    steps: Size | None = None
    eval_every: Size = 500
    checkpoint_every: Size = 500
    log_every: Size = 10
    keep: Size = 2
    clip: Annotated[Positive, pydantic.Field(allow_inf_nan=True)] | None = 1.0
    compile: bool | None = None
    epochs: Positive | None = None
    accumulate: Size = 1
    ema: Rate | None = None
    precision: Literal["bfloat16"] | None = None
    recompute: bool = False
    patience: Size | None = None
    final: Literal["last", "best"] = "last"
    prefetch: Annotated[int, pydantic.Field(ge=0)] = 0

    def __post_init__(self):
        if (self.steps is None) == (self.epochs is None):
            raise ConfigError(f"training: expected either steps or epochs; received steps={self.steps}, epochs={self.epochs}")
        if self.clip is None:
            object.__setattr__(self, "clip", math.inf)

    def in_steps(self, per_epoch: int) -> TrainingConfig:
        """The same with epochs as a number of updates. per_epoch: batches that see the data once."""
        if self.epochs is None:
            return self
        return dataclasses.replace(self, steps=max(1, round(self.epochs * per_epoch / self.accumulate)), epochs=None)


@config
class RunConfig:
    """A whole run. `data`, `model` and `optimizer` are tables whose kind is their first key.

    Args:
        data: `kind` and the fields of that data source, see `ember_ml.data.sources`.
        model: `family` (a registered model) and the fields of its config; or `file` alone, a model that was saved, to go on from.
        optimizer: `name` and the fields of its config; `rate` a number or a Schedule.
        training: see TrainingConfig.
        adapter: what the model starts from, what of it is frozen, and LoRA; see AdapterConfig.
        seed: of the initial weights, the dropout and the order of the data.
        backend: engine (and device) to train on, None for the default one.
    """

    data: dict[str, Any]
    model: dict[str, Any]
    optimizer: dict[str, Any]
    training: TrainingConfig
    adapter: AdapterConfig | None = None
    seed: Seed = 0
    backend: str | None = None


def read(path: str | Path, change: Callable[[dict], dict] = lambda values: values) -> RunConfig:
    """The RunConfig of a TOML or JSON file, its values as `change` gives them back.

    Raises ConfigError with the file, and the line of a syntax error.
    """
    if not Path(path).exists():
        raise ConfigError(f"{path}: no such file; examples/dna_hyena.toml is one to start from")
    values = change(read_table(path))
    try:
        return from_dict(RunConfig, values)
    except ConfigError as e:
        raise ConfigError(f"{path}: {e}") from None


def write(path: str | Path, value: RunConfig):
    """Writes a config as TOML or JSON that `read` gives back, in the place of an old file at once."""
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.tmp{path.suffix}")
    write_table(temporary, to_dict(value))
    os.replace(temporary, path)


def take_kind(table: dict[str, Any], key: str, known, where: str) -> tuple[str, dict[str, Any]]:
    """(kind, the other fields) of a table such as {family = "hyena_dna", ...}. Raises ConfigError without a known kind."""
    rest = dict(table)
    kind = rest.pop(key, None)
    if not isinstance(kind, str) or kind not in known:
        near = get_close_matches(kind, known, 2, 0.5) if isinstance(kind, str) and len(kind) < 100 else []
        raise ConfigError(f"[{where}]: expected {key} to be one of {', '.join(sorted(known))}; received {show(kind)}"
                          + (f"; did you mean {' or '.join(map(repr, near))}?" if near else ""))
    return kind, rest


def build_optimizer(table: dict[str, Any]) -> Optimizer:
    """The optimiser of a config's [optimizer] table."""
    name, fields = take_kind(table, "name", OPTIMIZERS, "optimizer")
    return OPTIMIZERS[name](from_dict(OPTIMIZERS[name].Config, fields))


def replaced(run: RunConfig, **changes) -> RunConfig:
    """The run with some fields of [training] or of the run itself replaced; None leaves a field alone."""
    own = {k: v for k, v in changes.items() if v is not None and k in {f.name for f in dataclasses.fields(RunConfig)}}
    training = {k: v for k, v in changes.items() if v is not None and k not in own}
    if "steps" in training:
        training["epochs"] = None
    return dataclasses.replace(run, training=dataclasses.replace(run.training, **training), **own)
