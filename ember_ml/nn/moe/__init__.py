"""Mixture of experts: a router chooses, per token, which experts work; a combiner makes one output of theirs."""

from ember_ml.nn.moe.base import MixtureOfExperts, MixtureOfExpertsConfig, SparseMoE, SparseMoEConfig
from ember_ml.nn.moe.insight import token_classes

#: the architecture document's name for the config of layer "moe"
MoEConfig = SparseMoEConfig

__all__ = ["MixtureOfExperts", "MixtureOfExpertsConfig", "MoEConfig", "SparseMoE", "SparseMoEConfig", "token_classes"]
