"""The table of combiners."""

from ember_ml.registry import Registry

#: combiners by name
combiners = Registry("combiner", "ember_ml.nn.moe.combination")
