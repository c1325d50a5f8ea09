"""Combiners: one output from those of a token's experts."""

from ember_ml.nn.moe.combination.base import combiners
from ember_ml.nn.moe.combination.concat import ConcatCombiner, ConcatCombinerConfig
from ember_ml.nn.moe.combination.weighted import WeightedSumCombiner, WeightedSumCombinerConfig

__all__ = ["ConcatCombiner", "ConcatCombinerConfig", "WeightedSumCombiner", "WeightedSumCombinerConfig", "combiners"]
