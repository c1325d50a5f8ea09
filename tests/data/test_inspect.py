"""What `inspect` tells of data, for every kind of it."""

import json

import numpy as np
import pytest

from ember_ml.data import inspect
from ember_ml.errors import ConfigError


def test_documents(tmp_path):
    path = tmp_path / "x.jsonl"
    texts = ["a" * n for n in range(1, 101)]
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts) + "nonsense\n")
    facts = inspect({"kind": "jsonl", "files": str(path), "held_out": 0.3})
    assert json.loads(json.dumps(facts)) == facts
    assert facts["items"] == 100 and facts["vocabulary"] == 257 and facts["task"] == "next_token"
    lengths = facts["lengths"]                                   # with their end marks
    assert (lengths["min"], lengths["median"], lengths["max"], lengths["total"]) == (2, 51.5, 101, sum(range(2, 102)))
    assert [(b["from"], b["to"], b["count"]) for b in lengths["histogram"]] == [
        (1, 1, 0), (2, 2, 1), (3, 4, 2), (5, 8, 4), (9, 16, 8), (17, 32, 16), (33, 64, 32), (65, 101, 37)]
    assert facts["first"].startswith("a") and len(facts["bad_lines"]) == 1 and "line 101" in facts["bad_lines"][0]
    assert facts["files"][0]["size"] == path.stat().st_size


def test_every_kind_has_facts(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "x.npz", x=rng.normal(size=(50, 6, 2)), y=rng.integers(0, 3, 50))
    np.save(tmp_path / "s.npy", rng.normal(size=(900, 2)))
    (tmp_path / "x.fna").write_text(f">a\n{'ACGT' * 400}\n")
    (tmp_path / "x.txt").write_text("to be or not to be\n" * 90)
    for table, (task, items, size) in (
            ({"kind": "arrays", "files": str(tmp_path / "x.npz")}, ("classification", 50, "classes")),
            ({"kind": "series", "file": str(tmp_path / "s.npy"), "horizon": 8, "length": 16}, ("regression", 2, "outputs")),
            ({"kind": "dna", "fasta": str(tmp_path / "x.fna"), "held_out": 300}, ("next_token", 2, "vocabulary")),
            ({"kind": "fasta", "files": str(tmp_path / "x.fna"), "length": 16}, ("next_token", 2, "vocabulary")),
            ({"kind": "text", "files": str(tmp_path / "x.txt"), "length": 16, "documents": "line"}, ("next_token", 90, "vocabulary"))):
        facts = inspect(table)
        assert (facts["task"], facts["items"]) == (task, items) and facts[size] > 1, table
        assert facts["first"] and facts["summary"] and facts["batches"] > 0 and json.dumps(facts)
    with pytest.raises(ConfigError, match="did you mean 'arrays'"):
        inspect({"kind": "array"})
