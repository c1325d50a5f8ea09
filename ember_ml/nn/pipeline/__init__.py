"""Pipelines: chains of stages, and stages for training, features and inference."""

from ember_ml.nn.pipeline.base import Pipeline
from ember_ml.nn.pipeline.feature import FeatureExtraction
from ember_ml.nn.pipeline.inference import Completion, Prediction, generate
from ember_ml.nn.pipeline.training import RunConfig, RunFolder, SupervisedTraining, Trainer, TrainingConfig

__all__ = ["Completion", "FeatureExtraction", "Pipeline", "Prediction", "RunConfig", "RunFolder", "SupervisedTraining", "Trainer", "TrainingConfig",
           "generate"]
