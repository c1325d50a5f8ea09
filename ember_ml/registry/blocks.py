"""The table of blocks, by name."""

from ember_ml.registry.base import Registry

blocks = Registry("block", "ember_ml.nn.blocks")
