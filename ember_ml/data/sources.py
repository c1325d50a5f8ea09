"""Data sources by the `kind` of a configuration's [data] table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ember_ml.data.dna import Bases, chromosome
from ember_ml.data.fasta import read_fasta
from ember_ml.data.markov import markov_bits
from ember_ml.data.windows import Windows, in_order
from ember_ml.errors import ConfigError, DataError
from ember_ml.registry.config import config, from_dict


@config
class DnaConfig:
    """DNA for next-base prediction.

    Args:
        fasta: file to read; None for the chromosome of Corynebacterium diphtheriae in the package pyrodigal.
        length: bases per window. batch: windows per update.
        held_out: bases at the end of the sequence that are never trained on.
    """

    length: int
    batch: int
    held_out: int = 123_183
    fasta: str | None = None


class DnaSource:
    """Windows of DNA: training batches, a held-out stretch, and the Markov models to beat on it.

    Raises DataError for a file that is no FASTA, or too short for the windows.
    """

    task, unit, alphabet, vocab_size = "next_token", "base", Bases, Bases.size

    def __init__(self, fields: DnaConfig, seed: int):
        self.config = c = fields
        tokens = chromosome() if c.fasta is None else Bases.encode(b"N".join(read_fasta(c.fasta).values()))
        if not c.length < c.held_out < tokens.size:
            raise DataError(f"dna: expected length < held_out < {tokens.size} (the bases there are), got length={c.length} "
                            f"and held_out={c.held_out}")
        self._train, self._test = tokens[:-c.held_out], tokens[-c.held_out:]
        self._windows = Windows(self._train, c.length, c.batch, seed)

    def batch(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of update i, int32 (batch, length)."""
        return self._windows.batch(i)

    def held_out(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The held-out stretch in order: inputs and targets, int32 (<= batch, length)."""
        return in_order(self._test, self.config.length, self.config.batch)

    def sample(self, length: int) -> np.ndarray:
        """The first bases of the held-out stretch, int32 (1, length)."""
        if length > self._test.size:
            raise DataError(f"dna: expected at most the {self._test.size} held-out bases, got {length}")
        return self._test[None, :length].astype(np.int32)

    def baselines(self, orders: tuple[int, ...] = (3, 6, 12, 13)) -> dict[str, float]:
        """Bits per base of the held-out stretch: a uniform model and Markov models counted on the training stretch."""
        return {"uniform": 2.0, **{f"Markov, order {k}": markov_bits(self._train, self._test, k) for k in orders}}

    def describe(self) -> str:
        """One line about the data."""
        return f"{self._train.size:,} bases to train on, {self._test.size:,} held out"


#: kind -> (config class, source class)
SOURCES = {"dna": (DnaConfig, DnaSource)}


def _pick(table: dict[str, Any]):
    rest = dict(table)
    kind = rest.pop("kind", None)
    if kind not in SOURCES:
        raise ConfigError(f"[data]: expected kind to be one of {', '.join(SOURCES)}; received {kind!r}")
    return SOURCES[kind], rest


def open_source(table: dict[str, Any], seed: int) -> DnaSource:
    """The data source of a [data] table, its order seeded. Raises ConfigError or DataError."""
    (config_class, source), fields = _pick(table)
    return source(from_dict(config_class, fields), seed)


def alphabet(table: dict[str, Any]):
    """The alphabet of a [data] table, without opening the data: `encode`, `decode`, `samples`."""
    (_, source), _ = _pick(table)
    return source.alphabet
