"""DNA as tokens, and the chromosome of the main job."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ember_ml.data.fasta import AMBIGUOUS, read_fasta
from ember_ml.data.files import fingerprint
from ember_ml.data.markov import markov_bits
from ember_ml.data.windows import Windows, in_order
from ember_ml.errors import DataError, MissingExtra
from ember_ml.registry import config

#: what the package pyrodigal ships: Corynebacterium diphtheriae NCTC11397, NCBI GCF_001457455.1
_FILE = "tests/data/GCF_001457455.1_NCTC11397_genomic.fna.gz"
_LENGTH = 2_463_666
_SHA256 = "e9f88cc1a5c1f0e10f372df91852e44630cbeb1d424a34566ed159e5e94850b3"


class Bases:
    """The alphabet: A C G T are tokens 0 to 3, everything uncertain is N, token 4."""

    letters = "ACGTN"
    unit, size = "base", 5
    #: N also stands between sequences
    end = 4
    #: tokens below this one are sampled
    samples = 4

    _to_token = np.full(256, 255, np.uint8)
    for _i, _c in enumerate("ACGT"):
        _to_token[[ord(_c), ord(_c.lower())]] = _i
    _to_token[[ord("U"), ord("u")]] = 3
    _to_token[[ord(c) for c in AMBIGUOUS + AMBIGUOUS.lower()]] = 4

    @classmethod
    def encode(cls, text: str | bytes) -> np.ndarray:
        """Letters as uint8 tokens (length,). Raises DataError for a letter that is no IUPAC nucleotide."""
        raw = text.encode("latin-1", "replace") if isinstance(text, str) else text
        tokens = cls._to_token[np.frombuffer(raw, np.uint8)]
        if tokens.size and tokens.max() == 255:
            at = int(np.argmax(tokens == 255))
            raise DataError(f"bases: expected nucleotides (ACGTU, {AMBIGUOUS}); got {chr(raw[at])!r} at position {at}")
        return tokens

    @classmethod
    def decode(cls, tokens) -> str:
        """Tokens (length,) as letters. Raises DataError for a token outside 0 ... 4."""
        array = np.asarray(tokens)
        if array.size and not (0 <= array.min() and array.max() < cls.size):
            raise DataError(f"bases: expected tokens from 0 to {cls.size - 1}, got {array.min()} to {array.max()}")
        return np.frombuffer(cls.letters.encode(), np.uint8)[array.astype(np.intp)].tobytes().decode()


def _chromosome_file() -> Path:
    spec = importlib.util.find_spec("pyrodigal")
    if spec is None or spec.origin is None:
        raise MissingExtra('the chromosome comes with the package pyrodigal, which is not installed; run: '
                           'pip install "ember-ml[dna]"')
    path = Path(spec.origin).parent / _FILE
    if not path.exists():
        raise DataError(f"{path}: this version of pyrodigal does not bring the chromosome; run: pip install pyrodigal==3.7.1")
    return path


def chromosome() -> np.ndarray:
    """The chromosome of Corynebacterium diphtheriae, uint8 tokens (2463666,), out of the installed package pyrodigal.

    The package's code is not run; the file is checked by its SHA-256.

    Raises MissingExtra with the pip command if the package is missing; DataError if its file is another one.
    """
    path = _chromosome_file()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != _SHA256:
        raise DataError(f"{path}: expected SHA-256 {_SHA256}, got {digest}; run: pip install --force-reinstall pyrodigal==3.7.1")
    tokens = Bases.encode(b"".join(read_fasta(path).values()))
    if tokens.size != _LENGTH:
        raise DataError(f"{path}: expected {_LENGTH} bases, got {tokens.size}")
    return tokens


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

    task, unit, alphabet, vocab_size, divided = "next_token", "base", Bases, Bases.size, False

    def __init__(self, fields: DnaConfig, seed: int):
        self.config = c = fields
        tokens = chromosome() if c.fasta is None else Bases.encode(b"N".join(read_fasta(c.fasta).values()))
        if not c.length < c.held_out < tokens.size:
            raise DataError(f"dna: expected length < held_out < {tokens.size} (the bases there are), got length={c.length} "
                            f"and held_out={c.held_out}")
        self._train, self._test = tokens[:-c.held_out], tokens[-c.held_out:]
        self._windows = Windows(self._train, c.length, c.batch, seed)
        self.length = self.longest = c.length
        self.per_epoch = self._windows.per_epoch

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

    def lengths(self) -> np.ndarray:
        """Bases of the training and of the held-out stretch, int64 (2,)."""
        return np.array([self._train.size, self._test.size], np.int64)

    def first(self) -> str:
        """The beginning of the first training document."""
        return self.alphabet.decode(self._train[:200])

    def fingerprint(self) -> list[dict[str, Any]]:
        """What identifies the file that was read, see `ember_ml.data.files.fingerprint`."""
        return fingerprint([_chromosome_file() if self.config.fasta is None else Path(self.config.fasta)])
