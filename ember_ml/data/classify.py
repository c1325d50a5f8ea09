"""Classification of documents: tokens, their lengths and the class of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ember_ml.data.documents import Documents
from ember_ml.data.files import fingerprint
from ember_ml.data.padding import Buckets, padded_width
from ember_ml.data.splits import by_hash
from ember_ml.data.text.tokenizers import Characters
from ember_ml.errors import DataError


class LabelledDocuments:
    """Batches of (tokens int32 (batch, <= length), lengths int32 (batch,), labels int32 (batch,)), neighbours in length together.

    Args:
        train, labels: documents that end with the end mark, which is left out here, and the class of each. held, held_labels: those to
        judge on; where there are none, a share of the others: by hash of the content, or the last ones. tokenizer: their alphabet.
        config: a DocumentsConfig. seed: of the order. files, skipped: as for NextTokenSource.

    Documents are cut to `length`. Classes are numbered in the order of their sorted names, `class_names`.
    """

    task, unit, divided = "classification", "document", True

    def __init__(self, train: Documents, labels: list[str], held: Documents, held_labels: list[str], tokenizer, config, seed: int,
                 files: list[Path], skipped: list[str]):
        self.config, self.files, self.skipped = config, files, skipped
        self.alphabet, self.vocab_size = tokenizer, tokenizer.size
        self.class_names = sorted({*labels, *held_labels})
        self.classes = len(self.class_names)
        if self.classes < 2:
            raise DataError(f"data: expected at least 2 classes in the field {config.label!r}, got {self.class_names}")
        number = {name: i for i, name in enumerate(self.class_names)}
        y, held_y = (np.array([number[n] for n in names], np.int32) for names in (labels, held_labels))
        if not len(held):
            is_held = by_hash((train[i].tobytes() for i in range(len(train))), config.held_out) if config.split == "hash" else (
                np.arange(len(train)) >= round((1.0 - config.held_out) * len(train)))
            held, held_y = train.take(np.flatnonzero(is_held)), y[is_held]
            train, y = train.take(np.flatnonzero(~is_held)), y[~is_held]
        if not len(held) or not len(train):
            raise DataError(f"data: expected documents on both sides, got {len(train)} to train on and {len(held)} held out; change "
                            "held_out")
        self._train, self._y, self._held, self._held_y = train, y, held, held_y
        self._buckets = Buckets(self._true_lengths(train), config.batch, seed)
        self.per_epoch = self._buckets.per_epoch

    def batch(self, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Batch of update i: tokens, lengths, labels."""
        return self._lay(self._train, self._y, self._buckets.rows(i))

    def held_out(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """The held-out documents, the shortest first; the last batch may have fewer."""
        order = np.argsort(self._true_lengths(self._held), kind="stable")
        for start in range(0, len(order), self.config.batch):
            yield self._lay(self._held, self._held_y, order[start:start + self.config.batch])

    def baselines(self) -> dict[str, float]:
        """Accuracy on the held-out documents of always saying the commonest class of the training documents, and of naive Bayes."""
        return {"commonest class": float((self._held_y == Counter(self._y.tolist()).most_common(1)[0][0]).mean()),
                "naive Bayes of token pairs": self._naive_bayes()}

    @property
    def longest(self) -> int:
        """Positions of the longest batch."""
        return min(self.config.length, padded_width(int(self.lengths().max())))

    @property
    def settled(self) -> dict[str, Any]:
        """As NextTokenSource's."""
        return {"letters": self.alphabet.letters} if isinstance(self.alphabet, Characters) else {}

    def describe(self) -> str:
        """One line about the data."""
        left = f"; {len(self.skipped):,} lines left out" if self.skipped else ""
        return f"{len(self._train):,} documents of {self.classes} classes to train on, {len(self._held):,} held out{left}"

    def lengths(self) -> np.ndarray:
        """Tokens of each document, int64, the training ones first."""
        return np.concatenate([self._true_lengths(self._train), self._true_lengths(self._held)])

    def first(self) -> str:
        """The beginning of the first training document."""
        return self.alphabet.decode(self._train[0][:200])

    def fingerprint(self) -> list[dict[str, Any]]:
        """What identifies the files that were read, see `ember_ml.data.files.fingerprint`."""
        return fingerprint(self.files)

    def _true_lengths(self, documents: Documents) -> np.ndarray:
        end = 0 if self.alphabet.end is None else 1
        return np.clip(documents.lengths - end, 1, self.config.length)

    def _lay(self, documents: Documents, y: np.ndarray, rows: np.ndarray):
        lengths = self._true_lengths(documents)[rows]
        tokens = np.zeros((len(rows), min(self.config.length, padded_width(int(lengths.max())))), np.int32)
        for row, document, n in zip(tokens, rows, lengths):
            row[:n] = documents[document][:n]
        return tokens, lengths.astype(np.int32), y[rows]

    def _naive_bayes(self) -> float:
        """Accuracy of argmax_c log p(c) + sum over neighbouring pairs of log p(pair | c), counts plus one, over pairs hashed to 2^16."""
        buckets = 1 << 16

        def pairs(documents, i):
            t = documents[i].astype(np.int64)
            return (t[:-1] * 31_337 + t[1:]) % buckets

        counts, classes = np.ones((self.classes, buckets)), np.bincount(self._y, minlength=self.classes) + 1.0
        for i, label in enumerate(self._y):
            np.add.at(counts[label], pairs(self._train, i), 1.0)
        log_p, prior = np.log(counts / counts.sum(1, keepdims=True)), np.log(classes / classes.sum())
        said = [int(np.argmax(prior + log_p[:, pairs(self._held, i)].sum(1))) for i in range(len(self._held))]
        return float((np.array(said) == self._held_y).mean())
