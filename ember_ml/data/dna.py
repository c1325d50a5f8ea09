"""DNA as tokens, and the chromosome of the main job."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import numpy as np

from ember_ml.data.fasta import AMBIGUOUS, read_fasta
from ember_ml.errors import DataError, MissingExtra

#: what the package pyrodigal ships: Corynebacterium diphtheriae NCTC11397, NCBI GCF_001457455.1
_FILE = "tests/data/GCF_001457455.1_NCTC11397_genomic.fna.gz"
_LENGTH = 2_463_666
_SHA256 = "e9f88cc1a5c1f0e10f372df91852e44630cbeb1d424a34566ed159e5e94850b3"


class Bases:
    """The alphabet: A C G T are tokens 0 to 3, everything uncertain is N, token 4."""

    letters = "ACGTN"
    size = 5
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


def chromosome() -> np.ndarray:
    """The chromosome of Corynebacterium diphtheriae, uint8 tokens (2463666,), out of the installed package pyrodigal.

    The package's code is not run; the file is checked by its SHA-256.

    Raises MissingExtra with the pip command if the package is missing; DataError if its file is another one.
    """
    spec = importlib.util.find_spec("pyrodigal")
    if spec is None or spec.origin is None:
        raise MissingExtra('the chromosome comes with the package pyrodigal, which is not installed; run: '
                           'pip install "ember-ml[dna]"')
    path = Path(spec.origin).parent / _FILE
    if not path.exists():
        raise DataError(f"{path}: this version of pyrodigal does not bring the chromosome; run: pip install pyrodigal==3.7.1")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != _SHA256:
        raise DataError(f"{path}: expected SHA-256 {_SHA256}, got {digest}; run: pip install --force-reinstall pyrodigal==3.7.1")
    tokens = Bases.encode(b"".join(read_fasta(path).values()))
    if tokens.size != _LENGTH:
        raise DataError(f"{path}: expected {_LENGTH} bases, got {tokens.size}")
    return tokens
