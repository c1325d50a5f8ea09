"""Next-token prediction on documents: how they are split, laid out in batches, and what a model has to beat on them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ember_ml.data.documents import Documents
from ember_ml.data.files import fingerprint
from ember_ml.data.markov import interpolated_bits
from ember_ml.data.packing import Packed
from ember_ml.data.padding import Padded, padded_width
from ember_ml.data.text.tokenizers import Characters
from ember_ml.data.windows import Windows, in_order
from ember_ml.errors import DataError

Layout = Literal["windows", "packed", "padded"]

#: baselines look at no more than this many of the first tokens of each side
_COUNTED = 1 << 24


class NextTokenSource:
    """Batches for next-token prediction.

    windows: all documents end to end, cut into windows of `length`. packed: whole documents side by side in rows of `length`, with
    segments. padded: a document a row, batches by true length. See Windows, Packed and Padded.

    Args:
        train, held: documents that end with the alphabet's end mark, if it has one. alphabet: a tokenizer. layout, length, batch: of
        the batches. seed: of their order. files: whose contents `fingerprint` records. skipped: lines that could not be read.
    """

    task = "next_token"

    def __init__(self, train: Documents, held: Documents, alphabet, layout: Layout, length: int, batch: int, seed: int,
                 files: list[Path], skipped: list[str] = ()):
        self.alphabet, self.unit, self.vocab_size = alphabet, alphabet.unit, alphabet.size
        self.layout, self.length, self.files, self.skipped = layout, length, files, list(skipped)
        self._train, self._held, self._batch = train, held, batch
        if layout == "windows":
            self._batches = Windows(train.tokens, length, batch, seed)
            if held.tokens.size <= length:
                raise DataError(f"data: expected more than length={length} held-out {self.unit}s, got {held.tokens.size}; hold out "
                                "more, or lower length")
        else:
            self._batches = (Packed if layout == "packed" else Padded)(train, length, batch, seed)
        self.per_epoch, self.divided = self._batches.per_epoch, layout == "packed"

    def batch(self, i: int) -> tuple[np.ndarray, ...]:
        """Batch of update i, int32 (batch, length) each: inputs, targets (-100 where nothing is asked), and segments if packed."""
        return self._batches.batch(i)

    def held_out(self) -> Iterator[tuple[np.ndarray, ...]]:
        """The held-out documents in order, in batches like `batch`'s; the last may have fewer rows."""
        if self.layout == "windows":
            return in_order(self._held.tokens, self.length, self._batch)
        return (Packed if self.layout == "packed" else Padded)(self._held, self.length, 1).in_order(self._batch)

    def sample(self, length: int) -> np.ndarray:
        """The first tokens of the held-out documents, int32 (1, length). Raises DataError if there are fewer."""
        if length > self._held.tokens.size:
            raise DataError(f"data: expected at most the {self._held.tokens.size} held-out {self.unit}s, got {length}")
        return self._held.tokens[None, :length].astype(np.int32)

    def baselines(self) -> dict[str, float]:
        """Bits per token of the held-out documents: a uniform model, and interpolated Markov models counted on the training ones.

        Their orders are 0 to 5, as far as contexts of this vocabulary fit 63 bits; of each side at most the first 16.8 million tokens
        count.
        """
        counted, judged = self._train.first(_COUNTED), self._held.first(_COUNTED)
        highest = int(62 / math.log2(self.vocab_size)) - 1
        bits = interpolated_bits(counted, judged, tuple(k for k in (0, 1, 2, 3, 4, 5) if k <= highest), self.vocab_size)
        return {"uniform": math.log2(self.vocab_size), **{f"counting, order {k}": b for k, b in bits.items()}}

    @property
    def longest(self) -> int:
        """Positions of the longest batch."""
        return min(self.length, padded_width(int(self.lengths().max()) - 1)) if self.layout == "padded" else self.length

    @property
    def settled(self) -> dict[str, Any]:
        """Fields of the [data] table that the data decided: kept with a run, they make its alphabet known without the data."""
        return {"letters": self.alphabet.letters} if isinstance(self.alphabet, Characters) else {}

    def describe(self) -> str:
        """One line about the data."""
        train, held = (f"{d.tokens.size:,} {self.unit}s of {len(d):,} document{'' if len(d) == 1 else 's'}"
                       for d in (self._train, self._held))
        fill = f", rows {self._batches.fill:.1%} full" if self.layout == "packed" else ""
        left = f"; {len(self.skipped):,} lines left out" if self.skipped else ""
        return f"{train} to train on, {held} held out{fill}{left}"

    def lengths(self) -> np.ndarray:
        """Tokens of each document, int64, the training ones first."""
        return np.concatenate([self._train.lengths, self._held.lengths])

    def first(self) -> str:
        """The beginning of the first training document."""
        return self.alphabet.decode(self._train[0][:200])

    def fingerprint(self) -> list[dict[str, Any]]:
        """What identifies the files that were read, see `ember_ml.data.files.fingerprint`."""
        return fingerprint(self.files)
