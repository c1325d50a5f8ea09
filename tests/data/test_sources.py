"""Data sources by the [data] table."""

import numpy as np
import pytest

from ember_ml.data import open_source
from ember_ml.errors import ConfigError, DataError


@pytest.fixture
def fasta(tmp_path):
    path = tmp_path / "x.fna"
    letters = "".join(np.random.default_rng(0).choice(list("ACGT"), 5000))
    path.write_text(f">x\n{letters}\n")
    return str(path)


def test_training_and_held_out_do_not_overlap(fasta):
    source = open_source({"kind": "dna", "fasta": fasta, "length": 32, "batch": 4, "held_out": 1000}, seed=0)
    assert source._train.size == 4000 and source._test.size == 1000
    assert source.batch(0)[0].shape == (4, 32)
    assert sum(y.size for _, y in source.held_out()) == (999 // 32) * 32
    assert source.sample(65).shape == (1, 65)


@pytest.mark.parametrize("table, words", [
    ({"kind": "rna"}, "kind to be one of dna, .*; received 'rna'; did you mean 'dna'"),
    ({}, "received None"),
    ({"kind": "dna", "length": 8, "batch": 1, "lenght": 8}, "unknown key 'lenght'.*length"),
    ({"kind": "dna", "batch": 1}, "needs 'length'"),
])
def test_refuses_tables(table, words):
    with pytest.raises(ConfigError, match=words):
        open_source(table, 0)


def test_refuses_impossible_sizes(fasta):
    with pytest.raises(DataError, match="length < held_out < 5000"):
        open_source({"kind": "dna", "fasta": fasta, "length": 32, "batch": 4, "held_out": 5000}, 0)
