"""Documents: many token sequences in one array."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ember_ml.errors import DataError

#: target of a position that is not judged
IGNORED = -100


class Documents:
    """Token sequences, one after the other in one array.

    Args:
        tokens: (N,), integers. lengths: (documents,), tokens of each; they add up to N.
        prompts: (documents,), how many tokens at the front of each are given and never judged; None for none.

    `documents[i]` is the tokens of one, a view; `take(which)` are some of them, in that order.
    """

    def __init__(self, tokens: np.ndarray, lengths: np.ndarray, prompts: np.ndarray | None = None):
        self.tokens, self.lengths = tokens, np.asarray(lengths, np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)])
        self.prompts = np.zeros(len(self.lengths), np.int64) if prompts is None else np.asarray(prompts, np.int64)
        if self.starts[-1] != tokens.size:
            raise DataError(f"documents: expected lengths that add up to {tokens.size} tokens, got {self.starts[-1]}")

    @classmethod
    def of(cls, sequences: Iterable[np.ndarray], end: int | None = None, prompts: Iterable[int] | None = None) -> Documents:
        """Joins sequences (length,) each; `end` is put after each of them, None for nothing."""
        parts = list(sequences)
        dtype = np.result_type(*parts, np.uint8) if end is None else np.result_type(*parts, np.min_scalar_type(end))
        tail = np.array([] if end is None else [end], dtype)
        pieces = [piece for part in parts for piece in (part, tail)]
        lengths = np.array([len(p) + tail.size for p in parts], np.int64)
        return cls(np.concatenate(pieces).astype(dtype) if parts else np.empty(0, dtype), lengths,
                   None if prompts is None else np.fromiter(prompts, np.int64))

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, i: int) -> np.ndarray:
        return self.tokens[self.starts[i]:self.starts[i + 1]]

    def take(self, which: np.ndarray) -> Documents:
        """The documents of these numbers."""
        which = np.asarray(which, np.int64)
        parts = [self[i] for i in which]
        return Documents(np.concatenate(parts) if parts else self.tokens[:0], self.lengths[which], self.prompts[which])

    def first(self, count: int) -> Documents:
        """The documents as far as the first `count` tokens reach; the last one may be cut."""
        lengths = np.diff(np.minimum(self.starts, count))
        kept = int(np.count_nonzero(lengths))
        return self if self.tokens.size <= count else Documents(self.tokens[:count], lengths[:kept], self.prompts[:kept])

    def pieces(self, length: int) -> np.ndarray:
        """int64 (pieces, 3): document, first input, number of inputs; documents with more than `length` inputs come in several.

        A document of n tokens has n - 1 inputs, each with the next token as its target; one of fewer than 2 has none.
        """
        inputs = np.maximum(self.lengths - 1, 0)
        count = -(-inputs // length)
        which = np.repeat(np.arange(len(self)), count)
        first = (np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)) * length
        return np.stack([which, first, np.minimum(inputs[which] - first, length)], axis=1)

    def lay(self, pieces: np.ndarray, at: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(inputs, targets, places): rows of `pieces` laid out in two int32 arrays of this shape.

        Args: pieces: int64 (P, 3). at: (P,), the place of each piece's first input, counted through the flat array.

        Where no piece lies inputs are 0 and targets ignored; so are the targets of prompts. places: int64, those that the pieces cover,
        one piece after the other.
        """
        which, first, counts = pieces.T
        offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        places = np.repeat(at, counts) + offsets
        tokens = np.repeat(self.starts[which] + first, counts) + offsets
        inputs, targets = np.zeros(shape, np.int32), np.full(shape, IGNORED, np.int32)
        inputs.ravel()[places] = self.tokens[tokens]
        judged = offsets + 1 >= np.repeat(self.prompts[which] - first, counts)
        targets.ravel()[places[judged]] = self.tokens[tokens[judged] + 1]
        return inputs, targets, places
