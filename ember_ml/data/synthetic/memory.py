"""Selective copying, compression and memorization."""

from __future__ import annotations

import numpy as np

from ember_ml.data.synthetic.base import IGNORED, Task, check, check_noise, shuffled_motifs
from ember_ml.registry import Seed, Size, config


@config
class SelectiveCopying(Task):
    """Tokens among blanks, then the copy token, then as many blanks as tokens, in whose places the tokens are to be said in their order.

    Tokens: 0 ... V - 3, the blank V - 2, the copy token V - 1.

    Args:
        vocab_size, seq_len: tokens; tokens of a sequence. num_tokens_to_copy: tokens among the blanks.
        as_published: the original draws the blanks' places from NumPy's global state; ours from the generator that it is given.

    Source: Poli et al. 2024, MAD, section 3; Gu and Dao 2023, Mamba, section 3.1.
    """

    vocab_size: Size = 16
    seq_len: Size = 256
    num_tokens_to_copy: Size = 16
    as_published: bool = False

    def __post_init__(self):
        check("selective_copying", self.seq_len > 2 * self.num_tokens_to_copy + 1,
              f"seq_len over 2 num_tokens_to_copy + 1 = {2 * self.num_tokens_to_copy + 1}, received {self.seq_len}")
        check("selective_copying", self.vocab_size > 2, f"vocab_size of at least 3, received {self.vocab_size}")

    def sample(self, rng: np.random.Generator, training: bool) -> tuple[np.ndarray, np.ndarray]:
        """See Task: length seq_len."""
        count, copy, blank = self.num_tokens_to_copy, self.vocab_size - 1, self.vocab_size - 2
        blanks = self.seq_len - 2 * count - 1
        tokens = rng.integers(blank, size=count)
        places = np.random.randint(0, count, blanks) if self.as_published else rng.integers(0, count, blanks)
        inputs = np.concatenate([np.insert(tokens, places, blank), [copy], np.full(count, blank)])
        return inputs, np.concatenate([np.full(count + blanks + 1, IGNORED), tokens])


@config
class Compression(Task):
    """Random tokens and a last one, V - 1, whose output alone has to hold all of them: the targets are the inputs.

    Args:
        vocab_size, seq_len: tokens; tokens of a sequence, the last one included.
        noise_vocab_size, frac_noise: tokens for noise, taken from vocab_size; probability of one in a place.
        as_published: the original also asks for the noise tokens; ours does not judge them.

    Source: Poli et al. 2024, MAD, section 3.
    """

    vocab_size: Size = 16
    seq_len: Size = 32
    noise_vocab_size: int = 0
    frac_noise: float = 0.0
    as_published: bool = False
    encodes = True

    def __post_init__(self):
        check_noise("compression", self.frac_noise, self.noise_vocab_size)
        check("compression", self.vocab_size - 1 > self.noise_vocab_size, f"vocab_size over noise_vocab_size + 1, received {self.vocab_size}")

    def sample(self, rng: np.random.Generator, training: bool) -> tuple[np.ndarray, np.ndarray]:
        """See Task: length seq_len."""
        plain = self.vocab_size - 1 - self.noise_vocab_size
        inputs = np.concatenate([rng.integers(plain, size=self.seq_len - 1), [self.vocab_size - 1]])
        targets = inputs.copy()
        if self.frac_noise > 0.0:
            for i in range(self.seq_len - 1):
                if rng.random() < self.frac_noise:
                    inputs[i] = plain + rng.integers(self.noise_vocab_size)
                    targets[i] = IGNORED
        return inputs, inputs if self.as_published else targets


@config
class Memorization(Task):
    """Keys, each followed by the sign V - 1, in whose place the key's value is to be said; values are fixed and have to be learned.

    Args:
        vocab_size, seq_len: tokens; tokens of a sequence. noise_vocab_size, frac_noise: as InContextRecall.
        map_seed: of the fixed map from keys to values.

    Source: Poli et al. 2024, MAD, section 3.
    """

    vocab_size: Size = 256
    seq_len: Size = 32
    noise_vocab_size: int = 0
    frac_noise: float = 0.0
    map_seed: Seed = 12345

    def __post_init__(self):
        check_noise("memorization", self.frac_noise, self.noise_vocab_size)
        check("memorization", self.vocab_size - 1 - self.noise_vocab_size >= 2, f"vocab_size for a key and a value, received {self.vocab_size}")

    def key_values(self) -> np.ndarray:
        """The fixed map, int64 (keys, 2): keys and their values."""
        plain, rng = self.vocab_size - 1 - self.noise_vocab_size, np.random.default_rng(self.map_seed)
        keys = shuffled_motifs(np.arange(plain // 2), 1, rng)
        values = shuffled_motifs(np.arange(plain // 2, plain), 1, rng)
        return np.array([(k[0], v[0]) for k, v in zip(keys, values)], np.int64)

    def sample(self, rng: np.random.Generator, training: bool) -> tuple[np.ndarray, np.ndarray]:
        """See Task: length seq_len, or one less if that is odd."""
        table, sign, inputs, targets = self.key_values(), self.vocab_size - 1, [], []
        noise = np.arange(sign - self.noise_vocab_size, sign)
        exempt = rng.integers(self.seq_len // 2)
        for i in range(self.seq_len // 2):
            if self.frac_noise > 0.0 and i != exempt and rng.random() < self.frac_noise:
                inputs += rng.choice(noise, size=2, replace=True).tolist()
                targets += [IGNORED, IGNORED]
            else:
                key, value = table[rng.integers(len(table))]
                inputs += [key, sign]
                targets += [IGNORED, value]
        return np.array(inputs), np.array(targets)
