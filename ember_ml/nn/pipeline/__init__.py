"""Pipelines: training, inference, and chains of stages."""

from ember_ml.nn.pipeline.base import Pipeline
from ember_ml.nn.pipeline.inference import generate
from ember_ml.nn.pipeline.training import Trainer, TrainingConfig

__all__ = ["Pipeline", "Trainer", "TrainingConfig", "generate"]
