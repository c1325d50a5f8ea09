"""A run's folder from a stranger, or a damaged one: what is wrong is told with its file, by every verb that reads it."""

import os

import pytest

DEEP = "[" * 100_000
FAULTS = {
    "rows that are lists": ("metrics.jsonl", "[1]\n", "metrics.jsonl, line 1: expected a row of a run"),
    "rows that are numbers": ("metrics.jsonl", "3\n", "metrics.jsonl, line 1: expected a row"),
    "rows without a step": ("metrics.jsonl", '{"loss": 1}\n', "metrics.jsonl, line 1: expected a row"),
    "words for numbers": ("metrics.jsonl", '{"step": 1, "loss": "y", "rate": []}\n', "metrics.jsonl, line 1: expected a row"),
    "scores that are a list": ("metrics.jsonl", '{"step": 1, "loss": 1, "eval": [1]}\n', "metrics.jsonl, line 1: expected a row"),
    "a summary of other types": ("summary.json", '{"family": 1, "parameters": "x"}', "summary.json: expected what ember train writes"),
    "a summary in a summary": ("summary.json", DEEP, "summary.json: is no JSON"), "a summary of bytes": ("summary.json", b"\xff", "summary.json: is no JSON"),
    "comparisons that are numbers": ("parity.json", "[1]", "parity.json: expected what ember parity writes"),
    "comparisons without fields": ("parity.json", "[{}]", "parity.json: expected what ember parity writes"),
    "a config of bytes": ("config.toml", b"\xff", ""), "a config in a config": ("config.toml", "a = " + DEEP, ""), "no config": ("config.toml", "x = 1", ""),
    "no weights": ("model.safetensors", b"junk", ""), "data of none": ("data.json", "[1]", ""), "data cut short": ("data.json", "{", ""),
    "metrics of bytes": ("metrics.jsonl", b"\xff\n", ""), "metrics in metrics": ("metrics.jsonl", DEEP, ""),
}
#: read by the lines that read another of them: one verb will do
ALIKE = ("a summary in a summary", "a summary of bytes", "comparisons that are numbers")
VERBS = ["report done", "eval done --backend numpy", "generate done --length 2 --backend numpy", "train job.toml --backend numpy --out done --resume --steps 5"]


@pytest.mark.parametrize("what", [what if message else pytest.param(what, marks=pytest.mark.slow) for what, (_, _, message) in FAULTS.items()])
def test_no_verb_falls_over_a_damaged_file(what, done, command):
    name, content, message = FAULTS[what]
    (done / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    told = []
    for verb in VERBS if name in ("config.toml", "model.safetensors") else VERBS[:1] if what in ALIKE else (VERBS[0], VERBS[-1]):
        said = command(*verb.split(" "))
        assert said.code in (0, 2) and (said.code == 0 or said.err.startswith("ember: ")), said.err
        told.append(said.err)
    assert any(message in text for text in told), told


def test_a_lock_that_is_a_link_keeps_what_it_points_to(done, command, tmp_path):
    (tmp_path / "mine").write_text("years of work")
    (done / ".lock").unlink(missing_ok=True)
    os.symlink(tmp_path / "mine", done / ".lock")
    said = command("train", "job.toml", "--backend", "numpy", "--out", "done", "--resume", "--steps", "5")
    assert said.code == 2 and "done: cannot be written" in said.err
    assert (tmp_path / "mine").read_text() == "years of work"
