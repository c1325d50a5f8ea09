"""Windows of a token sequence in a random order that is a pure function of seed and position."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from ember_ml.errors import DataError


class Windows:
    """Language-model batches: inputs of `length` tokens, and the same tokens one place later as targets.

    Each epoch cuts the sequence into windows at its own random offset, so that the cuts move, and visits them in its own
    random order. Both come from Philox keyed by (seed, epoch): batch i is the same whenever it is asked for, and a
    resumed run needs no more than i.

    Args:
        tokens: (N,), any integer dtype. length, batch: of the windows. seed: of the order.

    Raises DataError if the sequence is too short for one batch.
    """

    def __init__(self, tokens: np.ndarray, length: int, batch: int, seed: int = 0):
        if length < 1 or batch < 1:
            raise DataError(f"windows: expected length and batch of at least 1, got {length} and {batch}")
        # One window less than would fit, so that every offset below `length` leaves the same number of windows.
        self.count = (tokens.size - 1) // length - 1
        if self.count < batch:
            raise DataError(f"windows: expected at least {(batch + 1) * length + 1} tokens for batches of {batch} windows of "
                            f"{length}, got {tokens.size}; lower length or batch")
        self.tokens, self.length, self.size, self.seed = tokens, length, batch, seed
        self.per_epoch = self.count // batch
        self._epoch, self._starts = -1, np.empty(0, np.int64)

    def batch(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Batch number i >= 0: inputs and targets, int32 (batch, length) each."""
        epoch, place = divmod(i, self.per_epoch)
        if epoch != self._epoch:
            order = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
            offset = order.integers(self.length)
            self._epoch, self._starts = epoch, offset + self.length * order.permutation(self.count)
        starts = self._starts[place * self.size:(place + 1) * self.size]
        rows = self.tokens[starts[:, None] + np.arange(self.length + 1)].astype(np.int32)
        return rows[:, :-1], rows[:, 1:]


def in_order(tokens: np.ndarray, length: int, batch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every token of a sequence as a target once, in order: (inputs, targets), int32 (<= batch, length).

    What is left beyond the last whole window is not visited. Raises DataError if there is no whole window.
    """
    count = (tokens.size - 1) // length
    if count < 1:
        raise DataError(f"windows: expected at least {length + 1} tokens, got {tokens.size}; lower length")
    inputs = tokens[:count * length].reshape(count, length).astype(np.int32)
    targets = tokens[1:count * length + 1].reshape(count, length).astype(np.int32)
    for b in range(math.ceil(count / batch)):
        yield inputs[b * batch:(b + 1) * batch], targets[b * batch:(b + 1) * batch]
