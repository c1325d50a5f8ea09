"""Components by name: `layers.register("hyena")`, `layers.instantiate("hyena", d_input=64, l_max=1024)`."""

from ember_ml.registry.base import Registry
from ember_ml.registry.blocks import blocks
from ember_ml.registry.config import Count, Rate, Seed, Size, config, from_dict, to_dict
from ember_ml.registry.files import read_table, without_defaults, write_table
from ember_ml.registry.layers import layers
from ember_ml.registry.models import models

__all__ = ["Count", "Rate", "Registry", "Seed", "Size", "blocks", "config", "from_dict", "layers", "models", "read_table",
           "to_dict", "without_defaults", "write_table"]
