"""Channel mixers: layers that treat each position alone. Mixture of experts lives in `ember_ml.nn.moe`."""

from ember_ml.nn.moe import MixtureOfExperts, MixtureOfExpertsConfig, MoEConfig, SparseMoE, SparseMoEConfig

__all__ = ["MixtureOfExperts", "MixtureOfExpertsConfig", "MoEConfig", "SparseMoE", "SparseMoEConfig"]
