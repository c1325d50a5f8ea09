"""What the probe tasks have in common."""

from __future__ import annotations

from itertools import permutations

import numpy as np

from ember_ml.data.documents import IGNORED
from ember_ml.errors import ConfigError


class Task:
    """A synthetic task: `sample` draws one sequence.

    A task is a config: its fields say how hard it is. `as_published` reproduces MAD-Lab's generator to the bit, with its faults.
    """

    vocab_size: int
    seq_len: int
    #: the answer is one code for the whole sequence, from which all tokens are read again
    encodes = False

    def sample(self, rng: np.random.Generator, training: bool) -> tuple[np.ndarray, np.ndarray]:
        """(inputs, targets), int64 (length,) each; -100 where a target is not judged."""
        raise NotImplementedError

    def instances(self, count: int, seed: int, training: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """(inputs, targets), int64 (count, length) each, drawn one after the other from one generator of this seed."""
        rng = np.random.default_rng(seed)
        drawn = [self.sample(rng, training) for _ in range(count)]
        return tuple(np.stack(part).astype(np.int64) for part in zip(*drawn))


def check(name: str, right: bool, expected: str):
    """Raises ConfigError unless `right`."""
    if not right:
        raise ConfigError(f"{name}: expected {expected}")


def check_noise(name: str, frac_noise: float, noise_vocab_size: int):
    """Raises ConfigError for a share out of range, or noise without tokens."""
    check(name, 0.0 <= frac_noise < 1.0 and (frac_noise == 0.0 or noise_vocab_size > 0),
          f"0 <= frac_noise < 1, and noise_vocab_size > 0 where there is noise; received frac_noise={frac_noise}, "
          f"noise_vocab_size={noise_vocab_size}")


def shuffled_motifs(vocab: np.ndarray, size: int, rng: np.random.Generator) -> list[tuple[int, ...]]:
    """All sequences of `size` different tokens of the vocabulary, in random order."""
    motifs = list(permutations(vocab.tolist(), size))
    order = np.arange(len(motifs))
    rng.shuffle(order)
    return [motifs[i] for i in order]
