"""Models: lists of blocks with embedding and head. Importing this registers them."""

from ember_ml.nn.models.base import Model, ModelConfig
from ember_ml.nn.models.hyena import HyenaDNA, HyenaDNAConfig

__all__ = ["HyenaDNA", "HyenaDNAConfig", "Model", "ModelConfig"]
