"""Experts: stacked perceptrons, and any registered layer."""

from ember_ml.nn.moe.experts.base import Experts, experts
from ember_ml.nn.moe.experts.layers import LayerExperts, LayerExpertsConfig
from ember_ml.nn.moe.experts.mlp import MLPExperts, MLPExpertsConfig
from ember_ml.nn.moe.experts.transformer import Transformer, TransformerConfig

__all__ = ["Experts", "LayerExperts", "LayerExpertsConfig", "MLPExperts", "MLPExpertsConfig", "Transformer",
           "TransformerConfig", "experts"]
