"""Where a run starts from, and what of the model it trains: the [adapter] table of a run's file."""

from __future__ import annotations

import dataclasses

from ember_ml.nn.adapters.lora import LoRAConfig, add_lora
from ember_ml.nn.module import Module
from ember_ml.registry import config
from ember_ml.tensor import EmberTensor
from ember_ml.weights import LoadReport


@config
class AdapterConfig:
    """What is taken from elsewhere, kept as it is, or learned beside it.

    Args:
        weights: file whose tensors the model starts with, as far as they fit by name and shape (see `Module.load_weights`).
        freeze: globs of parameters, or of modules, that are not trained.
        lora: pairs that are trained instead of the model, see LoRAConfig; None for none. At the end of a run the folder has them in
            `adapter/`, as peft's files, and the model with them fused in.
    """

    weights: str | None = None
    freeze: list[str] = dataclasses.field(default_factory=list)
    lora: LoRAConfig | None = None


def adapt(model: Module, c: AdapterConfig, key: EmberTensor) -> LoadReport | None:
    """Prepares a model for training as a config says. Returns the report of `weights`, None without.

    Raises WeightsError for a file or a glob that does not fit, ConfigError for LoRA's targets.
    """
    report = None if c.weights is None else model.load_weights(c.weights, strict=False)
    if c.lora is not None:
        add_lora(model, c.lora, key)
    if c.freeze:
        model.freeze(*c.freeze)
    return report
