"""metrics.csv says what metrics.jsonl says, also of a run that goes on; TensorBoard's files, read back."""

import csv
import json
import struct
import sys

import pytest

from ember_ml.cli.logs import CsvLog, TensorBoardLog
from ember_ml.errors import MissingExtra
from ember_ml.nn.pipeline.training import RunFolder


def table(path):
    with path.open(newline="") as f:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(f)]


def expected(path):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{**{k: v for k, v in row.items() if k != "eval"}, **{f"eval.{k}": v for k, v in row.get("eval", {}).items()}} for row in rows]


def test_the_table_of_a_run_and_of_one_that_goes_on(command, job):
    assert command("train", "job.toml", "--out", "run", "--backend", "numpy").code == 0
    first = expected(job / "run/metrics.jsonl")
    assert table(job / "run/metrics.csv") == first and sum("eval.bits" in row for row in first) == 2
    (job / "run/metrics.csv").write_text("half a line")
    assert command("train", "job.toml", "--out", "run", "--backend", "numpy", "--resume", "--steps", 6).code == 0
    rows = table(job / "run/metrics.csv")
    assert rows == expected(job / "run/metrics.jsonl") and rows[:len(first)] == first and rows[-1]["step"] == 6


def test_a_new_column_finds_its_place(tmp_path):
    folder = RunFolder(tmp_path / "run")
    log = CsvLog(folder)
    log.start(None)
    for row in ({"step": 1, "loss": 2.0, "load": [0.5, 0.5]}, {"step": 2, "loss": 1.0}, {"step": 2, "eval": {"bits": 3.0}}, {"step": 3, "loss": 0.5}):
        folder.log(row)
        (log.evaluate if "eval" in row else log.step)(row)
    assert table(tmp_path / "run/metrics.csv") == [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}, {"step": 2, "eval.bits": 3.0},
                                                   {"step": 3, "loss": 0.5}]


def events(folder):
    """(tag, step, value) of the event files in a folder."""
    from tensorboardX.proto.event_pb2 import Event
    for path in sorted(folder.glob("events.*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            size, = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12:at + 12 + size])
            yield from ((value.tag, event.step, value.simple_value) for value in event.summary.value)
            at += 16 + size


def test_tensorboard(command, job):
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed; `make test` brings it")
    assert command("train", "job.toml", "--out", "run", "--backend", "numpy", "--tensorboard").code == 0
    found = {(tag, step): value for tag, step, value in events(job / "run/tensorboard")}
    rows = expected(job / "run/metrics.jsonl")
    for row in rows:
        for name in ("loss", "rate", "grad_norm", "eval.bits"):
            if name in row:
                assert found[name.replace(".", "/"), row["step"]] == pytest.approx(row[name], rel=1e-6)


def test_without_the_package(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(MissingExtra, match=r"ember-ml\[tensorboard\]"):
        TensorBoardLog(tmp_path)
