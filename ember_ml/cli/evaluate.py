"""`ember eval`: a run's model on held-out data, beside the baselines of that data."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ember_ml import backend as engines
from ember_ml import data
from ember_ml.cli.data import table as data_table
from ember_ml.cli.display import scores
from ember_ml.cli.generate import existing_model
from ember_ml.cli.output import Output
from ember_ml.data.sources import config_class
from ember_ml.errors import ConfigError, UnsupportedOp
from ember_ml.nn.models import Model
from ember_ml.nn.pipeline.training.fit import check_fit
from ember_ml.nn.pipeline.training.objectives import OBJECTIVES


def run(path: Path, other: Path | None, sets: list[str], backend: str | None, output: Output):
    """Evaluates on the held-out part of the run's own data, or of the [data] table of the file `other`."""
    config, file = existing_model(path)
    table = data_table(other or path / "config.toml", sets)
    if "letters" in config.data and "letters" in {f.name for f in dataclasses.fields(config_class(table))}:
        table = {"letters": config.data["letters"], **table}     # those that the model knows, not those that occur in other data
    engine, device = engines.parse(backend)
    where = f"{engine.name}:{device}"
    model, source = Model.load(file, device=where), data.open_source(table, config.seed)
    try:
        check_fit(model, source)
    except (ConfigError, UnsupportedOp) as e:
        raise type(e)(f"eval: {e}") from None
    if hasattr(source, "alphabet") and _identity(source.alphabet) != _identity(data.alphabet(config.data)):
        raise ConfigError("eval: the data's tokens mean other things than those that the model was trained on; give [data] the tokenizer, or "
                          f"the letters, of {path}/config.toml")
    objective = OBJECTIVES[source.task]
    found, baselines = objective.evaluate(model, source.held_out()), source.baselines()
    output.say(f"{path} on {where}, {source.describe()}")
    scores(output, found, baselines, source.unit)
    output.result({"run": str(path), "backend": where, "data": table, "scores": found, "baselines": baselines})


def _identity(alphabet) -> tuple:
    """What makes two alphabets the same: their kind, which is a class or an object's, their size and their letters."""
    kind = alphabet if isinstance(alphabet, type) else type(alphabet)
    return kind, alphabet.size, getattr(alphabet, "letters", None)
