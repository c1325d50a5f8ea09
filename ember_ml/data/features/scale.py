"""Standardising channels by what the training data says."""

from __future__ import annotations

import numpy as np


class Standardise:
    """(x - mean) / deviation of each channel, float32.

    Args:
        values: (N, channels), of the training data; a channel that does not vary is only shifted. active: False for x as it is.
    """

    def __init__(self, values: np.ndarray, active: bool = True):
        channels = values.shape[1]
        self.mean, self.deviation = np.zeros(channels), np.ones(channels)
        if active:
            self.mean = values.mean(0, dtype=np.float64)
            spread = np.sqrt(np.square(values - self.mean).mean(0))
            self.deviation = np.where(spread > 0.0, spread, 1.0)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """(..., channels), standardised."""
        return ((x - self.mean) / self.deviation).astype(np.float32)

    def undo(self, x: np.ndarray) -> np.ndarray:
        """(..., channels) in the units of the data, float64."""
        return x * self.deviation + self.mean
