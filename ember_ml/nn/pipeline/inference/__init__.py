"""Inference: predictions, generation."""

from ember_ml.nn.models.generation import complete, generate, stream_text
from ember_ml.nn.pipeline.inference.prediction import Completion, Prediction

__all__ = ["Completion", "Prediction", "complete", "generate", "stream_text"]
