"""FASTA: what is read, and what is refused with which words."""

import gzip

import pytest

from ember_ml.data import read_fasta
from ember_ml.errors import DataError


def write(tmp_path, text, name="a.fna"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_reads_records_in_order_and_capitals(tmp_path):
    path = write(tmp_path, ">one first record\nACgt\nNN\n\n>two\nuryk\r\n")
    assert read_fasta(path) == {"one": b"ACGTNN", "two": b"URYK"}
    assert list(read_fasta(path)) == ["one", "two"]


def test_reads_gzip_whatever_its_name(tmp_path):
    path = write(tmp_path, gzip.compress(b">x\nACGT\n"), "a.fna")
    assert read_fasta(path) == {"x": b"ACGT"}


@pytest.mark.parametrize("text, words", [
    ("", "the file is empty"),
    ("\n\n", "the file is empty"),
    ("ACGT\n", "line 1: expected a header"),
    (">x\n>y\nAC\n", "line 1: expected a sequence after the header of 'x'"),
    (">x\nAC\n>y\n", "line 3: expected a sequence after the header of 'y'"),
    (">x\nACGT\nACEGT\n", "line 3: expected nucleotides .* got 'E'"),
    (">x\nAC-GT\n", "got '-'"),
    (">x\nAC GT\n", "got ' '"),
    (">\nACGT\n", "line 1: expected a name"),
    (">x\nA\n>x\nC\n", "line 3: .*'x' came before"),
    (b">x\n\xff\xfe\n", "line 2: expected nucleotides"),
])
def test_refuses(tmp_path, text, words):
    path = write(tmp_path, text)
    with pytest.raises(DataError, match=words) as e:
        read_fasta(path)
    assert str(path) in str(e.value)


def test_refuses_missing_and_truncated_files(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_fasta(tmp_path / "none.fna")
    whole = gzip.compress(b">x\n" + b"ACGT" * 1000)
    with pytest.raises(DataError, match="damaged or cut short"):
        read_fasta(write(tmp_path, whole[:-20], "cut.fna.gz"))
