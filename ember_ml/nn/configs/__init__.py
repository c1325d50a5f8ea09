"""All configuration classes in one place; each lives beside its layer, block or model."""

from ember_ml.nn import blocks, layers, models, moe, optimizers
from ember_ml.nn.optimizers import Schedule

__all__ = ["Schedule"]
for _package in (blocks, layers, models, moe, optimizers):
    for _name in _package.__all__:
        if _name.endswith("Config"):
            globals()[_name] = getattr(_package, _name)
            __all__.append(_name)
