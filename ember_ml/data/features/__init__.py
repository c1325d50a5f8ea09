"""Features: arrays and time series as what models read, and plain models to compare with."""

from ember_ml.data.features.arrays import ArraysConfig, ArraySource, arrays_source
from ember_ml.data.features.scale import Standardise
from ember_ml.data.features.series import SeriesConfig, SeriesSource

__all__ = ["ArraySource", "ArraysConfig", "SeriesConfig", "SeriesSource", "Standardise", "arrays_source"]
