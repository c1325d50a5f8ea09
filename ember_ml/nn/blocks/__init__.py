"""Blocks: layers with norm, residual and dropout. Importing this registers them."""

from ember_ml.nn.blocks.base import Block, BlockConfig
from ember_ml.nn.blocks.presets import (
    FFTConvBlock, HybridBlock, HyenaBlock, LSTMBlock, MambaBlock, MoEBlock, PresetBlock, PresetConfig, RWKVBlock, TransformerBlock,
)
from ember_ml.registry import blocks

blocks.register("block")(Block)

__all__ = ["Block", "BlockConfig", "FFTConvBlock", "HybridBlock", "HyenaBlock", "LSTMBlock", "MambaBlock", "MoEBlock", "PresetBlock",
           "PresetConfig", "RWKVBlock", "TransformerBlock"]
