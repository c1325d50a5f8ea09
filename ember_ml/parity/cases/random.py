"""Random words and keys: the definition of Threefry-2x32 in whole numbers of Python."""

from __future__ import annotations

import numpy as np

from ember_ml import ops
from ember_ml.parity.cases.case import row

_WORD = 0xFFFFFFFF


def _rounds(key, x: int, y: int) -> tuple[int, int]:
    """Twenty rounds on one counter. Source: Salmon et al. 2011, section 4.2."""
    words = [int(key[0]), int(key[1]), int(key[0]) ^ int(key[1]) ^ 0x1BD11BDA]
    x, y = (x + words[0]) & _WORD, (y + words[1]) & _WORD
    for i in range(5):
        for turn in ((13, 15, 26, 6), (17, 29, 16, 24))[i % 2]:
            x = (x + y) & _WORD
            y = (y << turn | y >> 32 - turn) & _WORD ^ x
        x, y = (x + words[(i + 1) % 3]) & _WORD, (y + words[(i + 2) % 3] + i + 1) & _WORD
    return x, y


def _bits(key, n: int) -> np.ndarray:
    """Word i and word i + ceil(n / 2) come from the counter (i, i + ceil(n / 2)); the second is 0 where there is no such word."""
    half = (n + 1) // 2
    pairs = [_rounds(key, i, i + half if i + half < n else 0) for i in range(half)]
    return np.array([p[0] for p in pairs] + [p[1] for p in pairs], np.uint32)[:n]


_KEY = np.array([0x13198A2E, 0x93707344], np.uint32)
for _n, _label in ((7, "7 words"), (8, "8 words"), (0, "nothing")):
    row("random_bits", lambda key, n=_n: ops.random.bits(key, (n,)), [_KEY], lambda key, n=_n: _bits(key, n), (), label=_label)
row("fold", ops.random.fold_in, [_KEY, np.array(5, np.int32)], lambda key, i: np.array(_rounds(key, 0, int(i)), np.uint32), ())
