"""A random order of any number of things that needs no memory: place i is computed, not looked up."""

from __future__ import annotations

import numpy as np

from ember_ml.errors import DataError

_ROUNDS = 6


class Permutation:
    """A keyed bijection of 0 ... count - 1: a Feistel network on the next even number of bits, walked until it lands inside.

        (a, b) -> (b, a xor f(b, key_r)) for r = 0 ... 5;   again while the result is count or more

    `Permutation(n, seed, epoch)(i)` is the same on every machine, costs O(1) for each i, and a resumed run starts anywhere.

    Args:
        count: how many. seed, epoch: the key, integers of 0 and above.

    Source: Black and Rogaway 2002, Ciphers with Arbitrary Finite Domains, sections 3 (walking) and 4 (Feistel). f is the finalizer of
    SplitMix64 (Steele et al. 2014): a good mixer, no cipher.
    """

    def __init__(self, count: int, seed: int, epoch: int = 0):
        if count < 1:
            raise DataError(f"permutation: expected a count of at least 1, got {count}")
        self.count = count
        self._half = max(1, -(-(count - 1).bit_length() // 2))
        self._mask = np.uint64((1 << self._half) - 1)
        self._keys = np.random.Philox(key=[seed, epoch]).random_raw(_ROUNDS)

    def __call__(self, places) -> np.ndarray:
        """int64, the shape of `places`: what stands at each place. Raises DataError for a place outside 0 ... count - 1."""
        x = np.asarray(places, np.int64)
        if x.size and not (0 <= x.min() and x.max() < self.count):
            raise DataError(f"permutation: expected places from 0 to {self.count - 1}, got {x.min()} to {x.max()}")
        out = self._shuffle(x.astype(np.uint64).ravel())
        while (outside := out >= self.count).any():
            out[outside] = self._shuffle(out[outside])
        return out.astype(np.int64).reshape(x.shape)

    def _shuffle(self, x: np.ndarray) -> np.ndarray:
        half = np.uint64(self._half)
        a, b = x >> half, x & self._mask
        for key in self._keys:
            a, b = b, a ^ (_mix(b ^ key) & self._mask)
        return (a << half) | b


def _mix(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
