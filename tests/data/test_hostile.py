"""Data files that are damaged or made to do damage: a DataError that names the file and, where there are lines, the line."""

import gzip
import io
import zipfile

import numpy as np
import pytest

from ember_ml.data import open_source
from ember_ml.data.inspect import inspect
from ember_ml.errors import DataError

LINES = "".join(f"{i},{2 * i}\n" for i in range(60))
CSV = {"kind": "series", "length": 4, "horizon": 2, "batch": 2}
JSONL = {"kind": "jsonl", "text": "text", "length": 8, "batch": 2, "split": "tail", "held_out": 0.2}
ARRAYS = {"kind": "arrays", "batch": 2}
DNA = {"kind": "dna", "length": 8, "batch": 2, "held_out": 20}
DOCUMENTS = '{"text": "hello world"}\n' * 60


def npz(**arrays) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def claims_terabytes() -> bytes:
    """A .npz whose one array has a header and no numbers."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as z:
        z.writestr("x.npy", b"\x93NUMPY\x01\x00\x76\x00" + b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }".ljust(117) + b"\n")
    return file.getvalue()


X = np.zeros((40, 3))
FAULTS = {
    "csv of another width": (CSV, "x.csv", "a,b\n" + LINES + "1,2,3\n", "x.csv, line 62: expected 2 cells, got 3"),
    "csv with a word": (CSV, "x.csv", "a,b\n" + LINES + "x,3\n", "x.csv, line 62: expected a number in column 'a', got 'x'"),
    "csv with a byte of none": (CSV, "x.csv", "a,b\n" + LINES + "1\0,3\n", r"x.csv, line 62: expected a number in column 'a', got '1\\x00'"),
    "csv with a quote left open": (CSV, "x.csv", 'a,b\n"' + LINES * 500, "x.csv, line [0-9]+: cannot be read as a table .*field limit"),
    "csv in latin1": (CSV, "x.csv", b"a,b\n" + LINES.encode() + b"\xff,1\n", "x.csv, line 62: expected UTF-8 text, got the byte 0xff"),
    "half a character": (JSONL, "x.jsonl", DOCUMENTS + '{"text": "\\ud800 ab"}\n', r"x.jsonl, line 61: expected field 'text' to be text, got half a character"),
    "a number for a text": (JSONL, "x.jsonl", DOCUMENTS + '{"text": 3}\n', "x.jsonl, line 61: expected field 'text' to be a string, got 3"),
    "lists in lists": (JSONL, "x.jsonl", DOCUMENTS + "[" * 100_000 + "\n", "x.jsonl, line 61: expected a JSON object"),
    "no JSON in UTF-8": (JSONL, "x.jsonl", DOCUMENTS.encode() + b'{"text": "\xff"}\n', "x.jsonl, line 61: expected UTF-8 text"),
    "classes without an axis": (ARRAYS, "x.npz", npz(x=X, y=np.int32(2)), r"as many rows in 'y' as in 'x', 40; got shape \(\)"),
    "lengths without an axis": (ARRAYS, "x.npz", npz(x=X, y=np.arange(40) % 2, lengths=np.int32(3)), r"as many rows in 'lengths' as in 'x', 40; got shape \(\)"),
    "classes beyond 32 bits": (ARRAYS, "x.npz", npz(x=X, y=np.arange(40) << 33), "expected 'y' to be classes"),
    "pickled arrays": (ARRAYS, "x.npz", npz(x=np.array([{}, []], dtype=object), y=np.arange(2)), "x.npz: cannot be read as .npz arrays .*Object arrays"),
    "an array of terabytes": (ARRAYS, "x.npz", claims_terabytes(), "x.npz: cannot be read as .npz arrays"),
    "npz cut short": (ARRAYS, "x.npz", npz(x=X, y=np.arange(40))[:300], "x.npz: cannot be read as .npz arrays"),
    "sequence before a header": (DNA, "x.fna", "ACGT\n", "x.fna, line 1: expected a header line that begins with '>'"),
    "gzip cut short": (DNA, "x.fna", gzip.compress(b">x\n" + b"ACGT" * 300)[:-3], "x.fna: the gzip data is damaged or cut short"),
    "gzip of another checksum": (DNA, "x.fna", gzip.compress(b">x\n" + b"ACGT" * 300)[:-8] + bytes(8), "x.fna: the gzip data is damaged or cut short"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_file_is_an_error_that_names_it(fault, tmp_path):
    table, name, data, message = FAULTS[fault]
    (tmp_path / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    place = {"series": "file", "dna": "fasta"}.get(table["kind"], "files")
    with pytest.raises(DataError, match=message):
        open_source({**table, place: str(tmp_path / name)}, 0)


def test_what_a_line_holds_is_told_and_the_others_are_read(tmp_path):
    (tmp_path / "x.jsonl").write_text(DOCUMENTS + '{"text": "\\ud800"}\n[]\n')
    facts = inspect({**JSONL, "files": str(tmp_path / "x.jsonl")})
    assert facts["items"] == 60 and [line.partition(": ")[0][-7:] for line in facts["bad_lines"]] == ["line 61", "line 62"]


@pytest.mark.parametrize("seed", range(6))
def test_flipped_bits_in_arrays_are_read_or_refused(seed, tmp_path):
    """The archive has checksums, but not over all of itself."""
    whole, rng = npz(x=np.arange(120.0).reshape(40, 3), y=np.arange(40) % 3), np.random.default_rng(seed)
    for at in rng.integers(0, len(whole), 40):
        data = bytearray(whole)
        data[at] ^= int(rng.integers(1, 256))
        (tmp_path / "x.npz").write_bytes(data)
        try:
            inspect({**ARRAYS, "files": str(tmp_path / "x.npz")})
        except DataError as e:
            assert "x.npz" in str(e) or str(e).startswith("arrays: ")
