"""Markov models of a sequence by counting: what a neural model has to beat."""

from __future__ import annotations

import numpy as np

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
