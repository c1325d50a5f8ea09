"""Packing: several documents in one row, none of them cut that fits, with numbers that tell them apart."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

import numpy as np

from ember_ml.data.documents import Documents
from ember_ml.data.permutation import Permutation
from ember_ml.errors import DataError


def best_fit(sizes: np.ndarray, capacity: int) -> list[list[int]]:
    """Puts things of these sizes into bins: the largest first, each into the fullest bin that still has room.

    Args: sizes: (N,), from 1 to capacity. Returns: for each bin the numbers of the things in it.

    At most 11/9 of the fewest possible bins (plus a constant). Source: Johnson 1973, Near-optimal Bin Packing Algorithms.
    """
    if sizes.size and not (1 <= sizes.min() and sizes.max() <= capacity):
        raise DataError(f"packing: expected sizes from 1 to {capacity}, got {sizes.min()} to {sizes.max()}")
    bins: list[list[int]] = []
    room: dict[int, list[int]] = {}         # free places -> bins
    rooms: list[int] = []                   # the keys of `room`, sorted
    for thing in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[thing])
        at = bisect_left(rooms, size)
        if at == len(rooms):
            free, which = capacity, len(bins)
            bins.append([])
        else:
            free = rooms[at]
            which = room[free].pop()
            if not room[free]:
                del room[free], rooms[at]
        bins[which].append(thing)
        if free - size:
            if free - size not in room:
                insort(rooms, free - size)
            room.setdefault(free - size, []).append(which)
    return bins


class Packed:
    """Rows of `length` positions that hold whole documents: inputs, targets (the next token of the same document) and segments.

    Segments count the documents of a row from 1 and are 0 where nothing stands; there targets are ignored. A document with more than
    `length` inputs is cut into pieces, and each counts as a document. A model that is given the segments forgets at each border.

    Args:
        documents: their last token is the end mark, if there is one. length, batch: positions and rows. seed: of the rows' order.

    Attributes: per_epoch: batches that see every row but at most batch - 1 of them. fill: share of positions that hold a token.

    Raises DataError if there are fewer rows than a batch has.
    """

    def __init__(self, documents: Documents, length: int, batch: int, seed: int = 0):
        self.documents, self.length, self.size, self.seed = documents, length, batch, seed
        self._pieces = documents.pieces(length)
        self._rows = best_fit(self._pieces[:, 2], length)
        if len(self._rows) < batch:
            raise DataError(f"packing: expected documents for at least one batch of {batch} rows of {length}, got "
                            f"{len(self._rows)} rows from {len(documents):,} documents; lower batch or length")
        self.per_epoch = len(self._rows) // batch
        self.fill = float(self._pieces[:, 2].sum() / (len(self._rows) * length))

    def batch(self, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Batch number i >= 0: inputs, targets, segments, int32 (batch, length) each."""
        epoch, place = divmod(i, self.per_epoch)
        order = Permutation(len(self._rows), self.seed, epoch)
        return self._lay(order(np.arange(place * self.size, (place + 1) * self.size)))

    def in_order(self, batch: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Every row once, in order, `batch` of them at a time; the last batch may have fewer."""
        for start in range(0, len(self._rows), batch):
            yield self._lay(np.arange(start, min(start + batch, len(self._rows))))

    def _lay(self, rows: np.ndarray):
        held = [self._rows[r] for r in rows]
        sizes = np.array([len(row) for row in held])
        pieces = self._pieces[np.concatenate(held)]
        before = np.cumsum(pieces[:, 2]) - pieces[:, 2]                  # inputs of all pieces before, then of those in the same row
        firsts = np.cumsum(sizes) - sizes
        column = before - np.repeat(before[firsts], sizes)
        number = np.arange(len(pieces)) - np.repeat(firsts, sizes) + 1
        at = np.repeat(np.arange(len(rows)) * self.length, sizes) + column
        inputs, targets, places = self.documents.lay(pieces, at, (len(rows), self.length))
        segments = np.zeros_like(inputs)
        segments.ravel()[places] = np.repeat(number, pieces[:, 2])
        return inputs, targets, segments
