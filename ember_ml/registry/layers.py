"""The table of layers, by name."""

from ember_ml.registry.base import Registry

layers = Registry("layer", "ember_ml.nn.layers")
