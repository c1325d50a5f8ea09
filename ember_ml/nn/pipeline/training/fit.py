"""Whether a model takes the data: asked before anything is trained, evaluated or written."""

from __future__ import annotations

from typing import Any

from ember_ml.errors import ConfigError
from ember_ml.nn.models.base import Model
from ember_ml.nn.models.summary import longest
from ember_ml.nn.packing import check_packs


def known_fields(source) -> dict[str, Any]:
    """The fields of a model that a data source decides."""
    known: dict[str, Any] = {}
    if getattr(source, "vocab_size", None):
        known["vocab_size"] = source.vocab_size
    elif getattr(source, "channels", None):
        known["inputs"] = source.channels
    if source.task == "classification":
        known |= {"head": "classifier", "outputs": source.classes}
    elif source.task == "regression":
        known |= {"head": "regressor", "outputs": source.outputs}
    return known


def check_fit(model: Model, source):
    """Raises ConfigError if the model has another head, other channels, or fewer tokens or classes than the data, or takes no sequence as
    long; UnsupportedOp, with the layer, if it cannot keep the documents of a row apart."""
    if source.task == "next_token" and model.config.head not in ("tied", "dense"):
        raise ConfigError(f"the data asks for the next {source.unit}; this model has head={model.config.head!r}")
    for field, value in known_fields(source).items():
        have = getattr(model.config, field)
        if field == "inputs" and have is None and model.config.vocab_size is None:
            have = model.config.blocks[0].d_input
        more = field == "vocab_size" or field == "outputs" and source.task == "classification"
        if have is None or have < value if more else have != value:
            raise ConfigError(f"the data is for a model with {field}={value!r}{' or more' if more else ''}; this one has {have!r}")
    most = longest(model)
    if most is not None and source.longest > most:
        raise ConfigError(f"the data has sequences of {source.longest:,} positions; this model takes at most l_max = {most:,}: lower data.length, or "
                          "choose a model with a larger l_max")
    if source.divided:
        check_packs(model, pooled=model.pool is not None)
