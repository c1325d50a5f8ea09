"""Inference: generation."""

from ember_ml.nn.pipeline.inference.generate import generate

__all__ = ["generate"]
