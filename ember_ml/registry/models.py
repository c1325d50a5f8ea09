"""The table of models, by name."""

from ember_ml.registry.base import Registry

models = Registry("model", "ember_ml.nn.models")
