"""Markov baselines against counts by hand."""

import math

import numpy as np
import pytest

from ember_ml.data import DnaConfig, DnaSource, Documents, interpolated_bits, markov_bits
from ember_ml.errors import DataError


def by_hand(train, test, order, letters, alpha):
    """The definition, with dicts and loops."""
    pairs, contexts = {}, {}
    for i in range(order, len(train)):
        word = tuple(train[i - order:i + 1])
        if max(word) < letters:
            pairs[word] = pairs.get(word, 0) + 1
            contexts[word[:-1]] = contexts.get(word[:-1], 0) + 1
    bits = []
    for i in range(order, len(test)):
        word = tuple(test[i - order:i + 1])
        if max(word) < letters:
            p = (pairs.get(word, 0) + alpha) / (contexts.get(word[:-1], 0) + letters * alpha)
            bits.append(-math.log2(p))
    return sum(bits) / len(bits)


@pytest.mark.parametrize("order", [0, 1, 2, 3])
@pytest.mark.parametrize("alpha", [1.0, 0.25])
def test_equals_the_definition(order, alpha):
    rng = np.random.default_rng(order)
    train, test = rng.integers(0, 5, 400), rng.integers(0, 5, 90)      # token 4 is unknown
    assert markov_bits(train, test, order, 4, alpha) == pytest.approx(by_hand(train, test, order, 4, alpha), abs=1e-12)


def test_a_repeating_sequence_is_predicted():
    tokens = np.tile([0, 1, 2, 3], 500)
    assert markov_bits(tokens, tokens, 1) < 0.05 < 1.9 < markov_bits(tokens, tokens, 0)


def test_on_the_chromosome():
    bits = DnaSource(DnaConfig(length=1024, batch=8), seed=0).baselines((6, 12))
    assert bits["uniform"] == 2.0
    assert bits["Markov, order 6"] == pytest.approx(1.950, abs=1e-3)   # figures counted independently beforehand
    assert bits["Markov, order 12"] == pytest.approx(1.950, abs=1e-3)


def test_refuses():
    tokens = np.zeros(10, np.int64)
    with pytest.raises(DataError, match="order"):
        markov_bits(tokens, tokens, -1)
    with pytest.raises(DataError, match="order"):
        markov_bits(tokens, tokens, 31)
    with pytest.raises(DataError, match="more than 12 tokens in train"):
        markov_bits(tokens, tokens, 12)
    with pytest.raises(DataError, match="no stretch of known letters"):
        markov_bits(tokens, np.array([4, 4, 4]), 1)


def test_interpolated_bits_against_counting_with_dictionaries():
    """The formula, token by token, in plain Python."""
    rng = np.random.default_rng(0)
    documents = [Documents.of([rng.choice(4, n, p=[0.5, 0.3, 0.15, 0.05]) for n in lengths], end=4) for lengths in ([30, 50, 8], [20, 3])]
    train, test = documents
    followers: dict = {}
    for d in range(len(train)):
        sequence = train[d].tolist()
        for p, token in enumerate(sequence):
            for k in range(4):
                if p >= k:
                    after = followers.setdefault(tuple(sequence[p - k:p]), {})
                    after[token] = after.get(token, 0) + 1

    def probability(context, token):
        lower = probability(context[1:], token) if context else 1 / 5
        after = followers.get(context)
        return lower if after is None else (after.get(token, 0) + len(after) * lower) / (sum(after.values()) + len(after))

    for order in (0, 1, 3):
        bits = [-np.log2(probability(tuple(s[max(0, p - order):p]), s[p]))
                for s in (test[d].tolist() for d in range(len(test))) for p in range(1, len(s))]
        assert interpolated_bits(train, test, (order,), 5)[order] == pytest.approx(np.mean(bits), abs=1e-12)
    assert set(interpolated_bits(train, test, (0, 1, 3), 5)) == {0, 1, 3}
    asked = Documents(test.tokens, test.lengths, np.array([6, 0]))               # a prompt is read and not judged
    bits = [-np.log2(probability(tuple(s[max(0, p - 3):p]), s[p]))
            for s, first in ((test[0].tolist(), 6), (test[1].tolist(), 1)) for p in range(first, len(s))]
    assert interpolated_bits(train, asked, (3,), 5)[3] == pytest.approx(np.mean(bits), abs=1e-12)
