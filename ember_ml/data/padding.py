"""Batches by true length: each document a row, neighbours in length together, padded to the longest of them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ember_ml.data.documents import Documents
from ember_ml.data.permutation import Permutation
from ember_ml.errors import DataError

#: widths are multiples of this, so that a compiled step meets few different ones
MULTIPLE = 8


class Buckets:
    """The rows of each batch: things of about one length together, in an order that is a pure function of seed and position.

    An epoch shuffles all things, leaves out the last few that fill no batch, sorts the others by length (equal ones stay shuffled),
    cuts that into batches, and visits the batches in random order.

    Args:
        lengths: (N,). batch: things in each. seed: of the order.

    Raises DataError if there are fewer things than a batch has.
    """

    def __init__(self, lengths: np.ndarray, batch: int, seed: int = 0):
        if not 1 <= batch <= len(lengths):
            raise DataError(f"buckets: expected at least one batch of {batch}, got {len(lengths)} to batch; lower batch")
        self.lengths, self.size, self.seed = np.asarray(lengths), batch, seed
        self.per_epoch = len(lengths) // batch
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def rows(self, i: int) -> np.ndarray:
        """The numbers of the things in batch i >= 0, int64 (batch,)."""
        epoch, place = divmod(i, self.per_epoch)
        if epoch != self._epoch:
            kept = Permutation(len(self.lengths), self.seed, epoch)(np.arange(self.per_epoch * self.size))
            self._epoch, self._order = epoch, kept[np.argsort(self.lengths[kept], kind="stable")].reshape(-1, self.size)
        return self._order[Permutation(self.per_epoch, self.seed, epoch)(place)]


class Padded:
    """A document a row: inputs and targets (the next token), padded to the longest row of the batch, a multiple of 8.

    Where nothing stands, inputs are 0 and targets ignored. Padding is on the right: a causal model never looks at it. A document with
    more than `length` inputs is cut into pieces.

    Args: documents: as for Packed. length: longest row. batch: rows. seed: of the order, see Buckets.

    Attributes: per_epoch: batches of one pass over the documents.
    """

    def __init__(self, documents: Documents, length: int, batch: int, seed: int = 0):
        self.documents, self.length = documents, length
        self._pieces = documents.pieces(length)
        self._buckets = Buckets(self._pieces[:, 2], batch, seed)
        self.per_epoch = self._buckets.per_epoch

    def batch(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Batch number i >= 0: inputs and targets, int32 (batch, <= length) each."""
        return self._lay(self._buckets.rows(i))

    def in_order(self, batch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Every document once, the shortest first, `batch` of them at a time; the last batch may have fewer."""
        order = np.argsort(self._pieces[:, 2], kind="stable")
        for start in range(0, len(order), batch):
            yield self._lay(order[start:start + batch])

    def _lay(self, rows: np.ndarray):
        pieces = self._pieces[rows]
        width = min(self.length, padded_width(int(pieces[:, 2].max())))
        inputs, targets, _ = self.documents.lay(pieces, np.arange(len(rows)) * width, (len(rows), width))
        return inputs, targets


def padded_width(longest: int) -> int:
    """The next multiple of 8."""
    return -(-longest // MULTIPLE) * MULTIPLE
