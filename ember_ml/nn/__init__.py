"""Neural networks: modules, layers, blocks, models, losses, optimisers, and the training scope."""

from ember_ml.nn import adapters, initializers, layers, losses, optimizers
from ember_ml.nn.blocks import Block, BlockConfig
from ember_ml.nn.gradient import StepOutput, loss_function, value_and_grad
from ember_ml.nn.models import (
    XLSTM, HyenaDNA, HyenaDNAConfig, Model, ModelConfig, StripedHyena, StripedHyenaConfig, XLSTMConfig, XLSTMLarge, XLSTMLargeConfig,
)
from ember_ml.nn.moe import MixtureOfExperts, SparseMoE, SparseMoEConfig
from ember_ml.nn.module import Module
from ember_ml.nn.packing import packed
from ember_ml.nn.scope import add_loss, add_metric, next_key, training, update_buffer

__all__ = ["Block", "BlockConfig", "HyenaDNA", "HyenaDNAConfig", "MixtureOfExperts", "Model", "ModelConfig",
           "Module", "SparseMoE", "SparseMoEConfig", "StepOutput", "StripedHyena", "StripedHyenaConfig", "XLSTM", "XLSTMConfig", "XLSTMLarge",
           "XLSTMLargeConfig", "adapters", "add_loss", "add_metric", "initializers", "layers",
           "losses", "loss_function", "next_key", "optimizers", "packed", "training", "update_buffer", "value_and_grad"]
