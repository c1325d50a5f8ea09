"""Mixture of experts: a router chooses, per token, which experts work; their outputs are summed by weight."""

from ember_ml.nn.moe.base import MixtureOfExperts, MixtureOfExpertsConfig, SparseMoE, SparseMoEConfig

#: the architecture document's name for the config of layer "moe"
MoEConfig = SparseMoEConfig

__all__ = ["MixtureOfExperts", "MixtureOfExpertsConfig", "MoEConfig", "SparseMoE", "SparseMoEConfig"]
