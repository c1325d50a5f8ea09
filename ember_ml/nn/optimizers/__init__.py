"""Optimisers: pure updates of parameter trees, with schedules and clipping."""

from ember_ml.nn.optimizers.adam import Adam, AdamConfig, AdamW, AdamWConfig
from ember_ml.nn.optimizers.base import Optimizer, clip_by_global_norm
from ember_ml.nn.optimizers.schedules import Schedule
from ember_ml.nn.optimizers.sgd import SGD, SGDConfig

#: by the names that configuration files use
OPTIMIZERS = {"sgd": SGD, "adam": Adam, "adamw": AdamW}

__all__ = ["OPTIMIZERS", "Adam", "AdamConfig", "AdamW", "AdamWConfig", "Optimizer", "SGD", "SGDConfig", "Schedule",
           "clip_by_global_norm"]
