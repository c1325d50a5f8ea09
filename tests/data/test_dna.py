"""The alphabet, and the real chromosome."""

import importlib.util

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ember_ml.data import Bases, chromosome, dna
from ember_ml.errors import DataError, MissingExtra


@given(st.text("ACGTN"))
def test_decode_undoes_encode(text):
    assert Bases.decode(Bases.encode(text)) == text


def test_lower_case_uracil_and_ambiguity():
    assert Bases.encode("acgtnUuRyK").tolist() == [0, 1, 2, 3, 4, 3, 3, 4, 4, 4]


def test_refuses_other_letters_and_tokens():
    with pytest.raises(DataError, match="got 'X' at position 2"):
        Bases.encode("ACX")
    with pytest.raises(DataError, match="from 0 to 4"):
        Bases.decode([0, 5])


def test_the_chromosome_is_the_real_one():
    tokens = chromosome()
    assert tokens.shape == (2_463_666,) and tokens.dtype == np.uint8
    share = np.bincount(tokens, minlength=5) / tokens.size
    assert abs(share[1] + share[2] - 0.535) < 0.002          # GC content of C. diphtheriae: 53.5 %
    assert share[4] == 0.0


def test_missing_package_names_the_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r'pip install "ember-ml\[dna\]"'):
        chromosome()


def test_another_file_is_refused(monkeypatch):
    monkeypatch.setattr(dna, "_SHA256", "0" * 64)
    with pytest.raises(DataError, match="expected SHA-256 0000"):
        chromosome()
