"""What each op is compared on, on every engine: one row an op at least."""

from ember_ml.parity.cases import (
    composed, elementwise, linear, moe, network, order, random, recurrence, reduction, shape, signal, special, standard,
)
from ember_ml.parity.cases.case import CASES, Case

__all__ = ["CASES", "Case", "composed", "elementwise", "linear", "moe", "network", "order", "random", "recurrence", "reduction", "shape",
           "signal", "special", "standard"]
