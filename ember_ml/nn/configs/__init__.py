"""All configuration classes in one place; each lives beside its layer, block or model."""

from ember_ml.nn.blocks.base import BlockConfig
from ember_ml.nn.layers import (
    CfCConfig, LTCConfig, WiredCfCConfig,
    DenseConfig, DropoutConfig, EmbeddingConfig, GatedLinearAttentionConfig, GRUConfig, HyenaConfig,
    HyenaFilterConfig, LongConvConfig, LSTMConfig, MambaConfig, MLPConfig,
    NormConfig, ResidualConfig, RNNConfig, SelfAttentionConfig, ShortConvConfig,
)
from ember_ml.nn.models import HyenaDNAConfig, ModelConfig
from ember_ml.nn.moe import MixtureOfExpertsConfig, SparseMoEConfig
from ember_ml.nn.optimizers import AdamConfig, AdamWConfig, Schedule, SGDConfig

__all__ = ["AdamConfig", "AdamWConfig", "BlockConfig", "CfCConfig", "LTCConfig", "WiredCfCConfig", "DenseConfig", "DropoutConfig", "EmbeddingConfig", "GRUConfig", "GatedLinearAttentionConfig", "HyenaConfig",
           "HyenaDNAConfig", "HyenaFilterConfig", "LSTMConfig", "LongConvConfig", "MLPConfig", "MambaConfig", "MixtureOfExpertsConfig", "ModelConfig", "NormConfig",
           "RNNConfig", "ResidualConfig", "SGDConfig", "Schedule", "SelfAttentionConfig", "ShortConvConfig", "SparseMoEConfig"]
