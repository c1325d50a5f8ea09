"""Inference: generation."""

from ember_ml.nn.models.generation import complete, generate, stream_text

__all__ = ["complete", "generate", "stream_text"]
