"""Markov models of a sequence by counting: what a neural model has to beat."""

from __future__ import annotations

import numpy as np

from ember_ml.data.documents import Documents
from ember_ml.errors import DataError


def markov_bits(train: np.ndarray, test: np.ndarray, order: int, letters: int = 4, alpha: float = 1.0) -> float:
    """Bits per token of `test` under an order-k Markov model counted on `train`.

        p(x | context) = (count(context, x) + alpha) / (count(context) + letters * alpha)

    Args:
        train, test: tokens (N,), integers; tokens of `letters` and above (N) and their contexts are left out.
        order: k, tokens of context. letters: size of the alphabet. alpha: smoothing, one extra count per letter.

    Returns: mean of -log2 p over the test's tokens that have a whole context.

    Memory grows with the sequence, not with the number of contexts: words are sorted and looked up.

    Raises DataError for an order below 0, one whose words do not fit 63 bits, or sequences too short.
    """
    if order < 0 or letters ** (order + 1) >= 1 << 63:
        raise DataError(f"markov: expected 0 <= order with letters**(order + 1) < 2**63, got order={order}, letters={letters}")
    for name, tokens in (("train", train), ("test", test)):
        if tokens.size <= order:
            raise DataError(f"markov: expected more than {order} tokens in {name}, got {tokens.size}")
    seen, words = _words(train, order + 1, letters), _words(test, order + 1, letters)
    if words.size == 0:
        raise DataError("markov: the test sequence has no stretch of known letters as long as the context")
    p = (_count(seen, words) + alpha) / (_count(seen // letters, words // letters) + letters * alpha)
    return float(-np.log2(p).mean())


def _count(seen: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """How often each number of `asked` occurs in `seen`."""
    seen = np.sort(seen)
    return np.searchsorted(seen, asked, "right") - np.searchsorted(seen, asked, "left")


def _words(tokens: np.ndarray, width: int, letters: int) -> np.ndarray:
    """Every word of `width` tokens as one number in base `letters`; words with an unknown letter are left out."""
    wide = tokens.astype(np.int64)
    known = wide < letters
    number, whole = np.zeros(tokens.size - width + 1, np.int64), np.ones(tokens.size - width + 1, bool)
    for i in range(width):
        stop = tokens.size - width + 1 + i
        number = number * letters + wide[i:stop]
        whole &= known[i:stop]
    return number[whole]


def interpolated_bits(train: Documents, test: Documents, orders: tuple[int, ...], letters: int) -> dict[int, float]:
    """Bits per token of `test` under Markov models of these orders, each mixed with all lower ones, counted on `train`.

        p_k(x | c) = (count(c, x) + u(c) p_{k-1}(x | c')) / (count(c) + u(c))        p_{-1} = 1 / letters

    u(c) is the number of different tokens that followed the context c, and c' is c without its first token; after a context never
    seen, p_k = p_{k-1}. The strongest plain counting model for text with a large alphabet; `markov_bits` is the one for DNA.

    Args: train, test: contexts do not reach over the beginning of a document. letters: size of the alphabet, letters^(order + 1) < 2^63.

    Returns: order -> mean of -log2 p over the tokens of the test documents but the first of each and those of its prompt.

    Source: Witten and Bell 1991, The Zero-Frequency Problem, method C, as interpolated in Chen and Goodman 1999, section 2.5.
    """
    top = max(orders)
    if min(orders) < 0 or letters ** (top + 1) >= 1 << 63:
        raise DataError(f"markov: expected orders of 0 and above with letters**(order + 1) < 2**63, got {orders} and letters={letters}")
    seen, asked = np.zeros(train.tokens.size, np.int64), np.zeros(test.tokens.size, np.int64)
    place = np.arange(test.tokens.size) - np.repeat(test.starts[:-1], test.lengths)
    judged = place >= np.repeat(np.maximum(test.prompts, 1), test.lengths)
    p, bits = np.full(test.tokens.size, 1.0 / letters), {}
    for k in range(top + 1):
        seen[k:] += train.tokens[:train.tokens.size - k].astype(np.int64) * letters**k
        asked[k:] += test.tokens[:test.tokens.size - k].astype(np.int64) * letters**k
        words, counts = np.unique(seen[_inside(train, k)], return_counts=True)
        contexts, firsts, followers = np.unique(words // letters, return_index=True, return_counts=True)
        at = np.flatnonzero(_inside(test, k))
        total = np.add.reduceat(counts, firsts) if counts.size else counts
        place, known = _find(contexts, asked[at] // letters)
        at, place = at[known], place[known]
        word, there = _find(words, asked[at])
        count = np.where(there, counts[word], 0) if counts.size else 0
        p[at] = (count + followers[place] * p[at]) / (total[place] + followers[place])
        if k in orders:
            bits[k] = float(-np.log2(p[judged]).mean())
    return bits


def _inside(documents: Documents, k: int) -> np.ndarray:
    """bool (N,): tokens with at least k others before them in their document."""
    inside = np.ones(documents.tokens.size, bool)
    for j in range(k):
        starts = documents.starts[:-1] + j
        inside[starts[j < documents.lengths]] = False
    return inside


def _find(numbers: np.ndarray, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(place of each asked number in sorted numbers, whether it is there)."""
    place = np.minimum(np.searchsorted(numbers, asked), max(numbers.size - 1, 0))
    return place, (numbers[place] == asked if numbers.size else np.zeros(asked.size, bool))
