"""Experts, stacked: one tensor per parameter holds that of all experts, so that they compute together."""

from ember_ml.nn.moe.experts.mlp import MLPExperts, MLPExpertsConfig

__all__ = ["MLPExperts", "MLPExpertsConfig"]
