"""Feature pipelines: what a trained model makes of sequences, for other methods to work with."""

from ember_ml.nn.pipeline.feature.extraction import FeatureExtraction

__all__ = ["FeatureExtraction"]
