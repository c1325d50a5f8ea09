"""Neural networks: modules, layers, blocks, models, losses, optimisers, and the training scope."""

import importlib
import sys

from ember_ml.nn import adapters, blocks, initializers, layers, losses, models, moe, optimizers
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


def __getattr__(name: str):
    if name in ("configs", "pipeline"):                             # loaded when they are asked for: models need no trainer
        return importlib.import_module(f"{__name__}.{name}")
    asked = "Dense" if name == "Linear" else name
    where = next((part.__name__.removeprefix("ember_ml.") for part in (layers, models, blocks, moe) if asked in part.__all__), None)
    hint = f"; it is {where}.{asked}" if where else ""
    raise AttributeError(f"module 'ember_ml.nn' has no attribute {name!r}{hint}", name=name, obj=sys.modules[__name__])
