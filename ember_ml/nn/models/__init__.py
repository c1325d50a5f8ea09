"""Models: lists of blocks with embedding and head. Importing this registers them."""

from ember_ml.nn.models.auto_encoder import AutoEncoder, AutoEncoderConfig
from ember_ml.nn.models.base import Model
from ember_ml.nn.models.config import ModelConfig
from ember_ml.nn.models.generation import complete, generate, stream_text
from ember_ml.nn.models.hyena import HyenaDNA, HyenaDNAConfig
from ember_ml.nn.models.presets import (
    FFTConvModel, HybridModel, HyenaModel, LSTMModel, MambaModel, MoEModel, RWKVModel, StackConfig, StackModel, Transformer,
)
from ember_ml.nn.models.sampling import SamplingConfig
from ember_ml.nn.models.striped_hyena import StripedHyena, StripedHyenaConfig
from ember_ml.nn.models.xlstm import XLSTM, XLSTMConfig, XLSTMLarge, XLSTMLargeConfig

__all__ = ["AutoEncoder", "AutoEncoderConfig", "FFTConvModel", "HybridModel", "HyenaDNA", "HyenaDNAConfig", "HyenaModel", "LSTMModel",
           "MambaModel", "MoEModel", "Model", "ModelConfig", "RWKVModel", "SamplingConfig", "StackConfig", "StackModel", "StripedHyena", "StripedHyenaConfig", "Transformer",
           "XLSTM", "XLSTMConfig", "XLSTMLarge", "XLSTMLargeConfig", "complete", "generate", "stream_text"]
