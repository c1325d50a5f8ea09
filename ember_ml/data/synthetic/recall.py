"""In-context recall: values of keys that the sequence has shown before, plain, among noise, or with keys and values of several tokens."""

from __future__ import annotations

import numpy as np

from ember_ml.data.synthetic.base import IGNORED, Task, check, check_noise, shuffled_motifs
from ember_ml.registry import Size, config


@config
class InContextRecall(Task):
    """Pairs of a key and its value, one token each; a key that comes again has the same value.

    Tokens: keys 0 ... K/2 - 1, values K/2 ... K - 1, then noise, then the sign before the last pair unless `multi_query`. In training every
    next token is a target; in a test the values of known keys are (multi_query), or the value of the last pair alone.

    Args:
        vocab_size, seq_len: tokens; tokens of a sequence before it is shifted by one, even.
        multi_query: judge each value of a key that was there before. noise_vocab_size: tokens for noise, taken from vocab_size.
        frac_noise: probability that a pair is noise; one place is never noise.

    Source: Poli et al. 2024, Mechanistic Design and Scaling of Hybrid Architectures (MAD), section 3.
    """

    vocab_size: Size = 16
    seq_len: Size = 128
    multi_query: bool = True
    noise_vocab_size: int = 0
    frac_noise: float = 0.0

    def __post_init__(self):
        check_noise("in_context_recall", self.frac_noise, self.noise_vocab_size)
        check("in_context_recall", self.seq_len % 2 == 0, f"an even seq_len, received {self.seq_len}")
        check("in_context_recall", self._plain() >= 2, f"vocab_size for a key and a value beside noise and signs, received {self.vocab_size}")

    def _plain(self) -> int:
        return self.vocab_size - self.noise_vocab_size - (not self.multi_query)

    def sample(self, rng: np.random.Generator, training: bool) -> tuple[np.ndarray, np.ndarray]:
        """See Task: length seq_len - 1, or seq_len where there is a sign."""
        plain = self._plain()
        half, noise = plain // 2, np.arange(plain, plain + self.noise_vocab_size)
        pairs, known, tokens, targets = self.seq_len // 2, {}, [], []
        exempt = rng.integers(pairs)
        for i in range(pairs - 1):
            if self.frac_noise > 0.0 and i != exempt and rng.random() < self.frac_noise:
                tokens += rng.choice(noise, size=2, replace=True).tolist()
                targets += [IGNORED, IGNORED]
                continue
            key = int(rng.integers(half))
            seen = key in known
            if not seen:
                known[key] = half + int(rng.integers(plain - half))
            tokens += [key, known[key]]
            targets += [IGNORED, known[key] if seen and self.multi_query else IGNORED]
        key = list(known)[rng.integers(len(known))]
        sign = [] if self.multi_query else [self.vocab_size - 1]
        tokens += [*sign, key, known[key]]
        targets += [IGNORED] * (len(sign) + 1) + [known[key]]
        return np.array(tokens[:-1]), np.array((tokens if training else targets)[1:])


@config
class NoisyInContextRecall(InContextRecall):
    """InContextRecall, a fifth of whose pairs are noise."""

    vocab_size: Size = 32
    noise_vocab_size: int = 16
    frac_noise: float = 0.2


@config
class FuzzyInContextRecall(Task):
    """Recall with keys and values of one to several different tokens. In a test all keys have the full size.

    Tokens: keys, values, noise, then (without multi_query) the sign before the last pair, and padding on the left.

    Args:
        vocab_size, seq_len, multi_query, noise_vocab_size, frac_noise: as InContextRecall.
        k_motif_size, v_motif_size: most tokens of a key and of a value.
        as_published: the original sometimes asks for a key that the sequence has never shown; ours is always there.

    Source: Poli et al. 2024, MAD, section 3.
    """

    vocab_size: Size = 16
    seq_len: Size = 128
    k_motif_size: Size = 3
    v_motif_size: Size = 3
    multi_query: bool = True
    noise_vocab_size: int = 0
    frac_noise: float = 0.0
    as_published: bool = False

    def __post_init__(self):
        check_noise("fuzzy_in_context_recall", self.frac_noise, self.noise_vocab_size)
        longest = self.k_motif_size + self.v_motif_size
        check("fuzzy_in_context_recall", self.seq_len > 2 * longest, f"seq_len over {2 * longest}, two pairs, received {self.seq_len}")
        plain = self._plain()
        check("fuzzy_in_context_recall", plain // 2 >= self.k_motif_size and plain - plain // 2 >= self.v_motif_size,
              f"at least {self.k_motif_size} key and {self.v_motif_size} value tokens, received vocab_size={self.vocab_size}")

    def _plain(self) -> int:
        return self.vocab_size - self.noise_vocab_size - (1 if self.multi_query else 2)

    def sample(self, rng: np.random.Generator, training: bool) -> tuple[np.ndarray, np.ndarray]:
        """See Task: length seq_len."""
        plain = self._plain()
        sizes = range(1, self.k_motif_size + 1) if training else [self.k_motif_size]
        keys = {n: shuffled_motifs(np.arange(plain // 2), n, rng) for n in sizes}
        values = {n: shuffled_motifs(np.arange(plain // 2, plain), n, rng) for n in range(1, self.v_motif_size + 1)}
        noise = np.arange(plain, plain + self.noise_vocab_size)

        def key_size():
            return 1 + int(rng.integers(self.k_motif_size)) if training else self.k_motif_size

        def value_size():
            return 1 + int(rng.integers(self.v_motif_size))

        def motif(table, size):
            return table[size][rng.integers(len(table[size]))]

        k_size, v_size = key_size(), value_size()
        asked, answer = motif(keys, k_size), motif(values, v_size)
        pair = k_size + v_size
        longest = self.k_motif_size + self.v_motif_size
        stop = self.seq_len - pair - longest                   # a pair begun before this fits
        place = rng.integers(self.seq_len - 2 * pair if self.as_published else max(1, stop - longest + 1))
        shown, known, tokens, targets = False, {}, [], []
        while len(tokens) < stop:
            k_size, v_size = key_size(), value_size()
            if len(tokens) >= place and not shown:
                key = asked
            elif self.frac_noise > 0.0 and rng.random() < self.frac_noise:
                tokens += rng.choice(noise, size=k_size + v_size, replace=True).tolist()
                targets += [IGNORED] * (k_size + v_size)
                continue
            else:
                key = motif(keys, k_size)
            seen = key in known
            if not seen:
                known[key] = answer if key == asked else motif(values, v_size)
            shown = shown or key == asked
            tokens += [*key, *known[key]]
            targets += [IGNORED] * len(key) + (list(known[key]) if seen and self.multi_query else [IGNORED] * len(known[key]))
        sign = [] if self.multi_query else [self.vocab_size - 1]
        tokens += [*sign, *asked, *answer]
        targets += [IGNORED] * (len(sign) + len(asked)) + list(answer)
        spare = max(0, self.seq_len + 1 - len(tokens))
        tokens = [self.vocab_size - (1 if self.multi_query else 2)] * spare + tokens
        targets = [IGNORED] * spare + targets
        return np.array(tokens[:-1]), np.array((tokens if training else targets)[1:])
