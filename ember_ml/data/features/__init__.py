"""Features: arrays and time series as what models read."""
