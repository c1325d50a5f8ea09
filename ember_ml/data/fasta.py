"""FASTA files: named sequences of nucleotides, plain or gzipped."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ember_ml.data.files import lines
from ember_ml.errors import DataError

#: IUPAC nucleotide letters that stand for more than one base; they are read as N
AMBIGUOUS = "NRYSWKMBDHV"
_KNOWN = np.zeros(256, bool)
_KNOWN[list(b"ACGTUacgtu" + AMBIGUOUS.encode() + AMBIGUOUS.lower().encode())] = True


def read_fasta(path: str | Path) -> dict[str, bytes]:
    """The records of a file, by the first word of their header, in capital letters as they stand.

    Raises DataError naming file, line and letter for: a file that is not there, is no text or is empty; sequence before the first
    header; a record without sequence; two records of one name; a letter that is no IUPAC nucleotide.
    """
    path = Path(path)
    records: dict[str, list[bytes]] = {}
    current: list[bytes] | None = None
    name, started = "", 0
    number = 0
    for number, line in enumerate(lines(path), 1):
        line = line.strip()
        if not line or line.startswith(b";"):
            continue
        if line.startswith(b">"):
            _check_filled(path, name, started, current)
            name, started = line[1:].split(None, 1)[0].decode("utf-8", "replace") if line[1:].strip() else "", number
            if not name:
                raise DataError(f"{path}, line {number}: expected a name after '>'; got an empty header")
            if name in records:
                raise DataError(f"{path}, line {number}: expected every record to have its own name; {name!r} came before")
            current = records[name] = []
        elif current is None:
            raise DataError(f"{path}, line {number}: expected a header line that begins with '>'; got {line[:20]!r}; "
                            "this is no FASTA file")
        else:
            bad = ~_KNOWN[np.frombuffer(line, np.uint8)]
            if bad.any():
                letter = chr(line[int(np.argmax(bad))])
                raise DataError(f"{path}, line {number}: expected nucleotides (ACGTU, {AMBIGUOUS}); got {letter!r}; remove "
                                "gaps, numbers and protein sequences")
            current.append(line.upper())
    _check_filled(path, name, started, current)
    if not records:
        raise DataError(f"{path}: expected at least one record; the file is empty")
    return {key: b"".join(parts) for key, parts in records.items()}


def _check_filled(path: Path, name: str, line: int, parts: list[bytes] | None):
    if parts is not None and not parts:
        raise DataError(f"{path}, line {line}: expected a sequence after the header of {name!r}; got none")
