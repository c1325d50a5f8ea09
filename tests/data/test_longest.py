"""What a source tells of its batches before any is made: the longest, and whether rows are divided."""

import numpy as np
import pytest

from ember_ml import data

WORDS = np.random.default_rng(0)
LINES = "".join('{"text": "%s", "label": "%s"}\n' % ("".join(WORDS.choice(list("ab c"), WORDS.integers(1, 40))), "xy"[i % 2]) for i in range(60))
JSONL = {"kind": "jsonl", "files": "t.jsonl", "text": "text", "batch": 3, "held_out": 0.3}
TABLES = [*({**JSONL, "length": length, "layout": layout} for length in (8, 20, 64) for layout in ("padded", "packed", "windows")),
          *({**JSONL, "length": length, "label": "label"} for length in (8, 20, 64)),
          {"kind": "arrays", "files": "a.npz", "batch": 3}, {"kind": "arrays", "files": "a.npz", "batch": 3, "lengths": "n"},
          {"kind": "series", "file": "s.npy", "length": 7, "horizon": 2, "batch": 3},
          {"kind": "dna", "fasta": "x.fna", "length": 9, "batch": 3, "held_out": 50}]


@pytest.mark.parametrize("table", TABLES, ids=lambda t: "-".join(str(t.get(k, "")) for k in ("kind", "layout", "length", "label", "lengths")))
def test_the_longest_batch_is_as_long_as_told(table, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    r = np.random.default_rng(1)
    (tmp_path / "t.jsonl").write_text(LINES)
    (tmp_path / "x.fna").write_text(">x\n" + "ACGT" * 100 + "\n")
    np.savez("a.npz", x=r.normal(size=(30, 21, 2)).astype(np.float32), y=np.arange(30) % 2, n=r.integers(1, 15, 30))
    np.save("s.npy", r.normal(size=200))
    source = data.open_source(table, 0)
    batches = [*map(source.batch, range(6 * source.per_epoch)), *source.held_out()]
    assert source.longest == max(b[0].shape[1] for b in batches)
    assert {source.divided} == {len(b) == 3 for b in batches}
