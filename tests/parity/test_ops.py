"""Parity of the ops as a command: honest ops pass, a wrong one fails, results of machines are joined, files of others are checked."""

import json

import numpy as np
import pytest

import ember_ml as em
from ember_ml import ops, parity
from ember_ml.cli import parity_ops
from ember_ml.cli.output import Output
from ember_ml.errors import ConfigError
from ember_ml.parity import cases
from ember_ml.parity.cases import Case
from ember_ml.parity.document import document, merge, read, write
from ember_ml.parity.ops import compare_ops, op_rows
from ember_ml.parity.table import render_ops

X = np.linspace(0.3, 2.0, 6).reshape(2, 3)
HONEST = [c for c in cases.CASES if c.id in ("exp", "argsort", "sum of nothing")]


def wrong(call, expect=np.exp, **rest):
    return Case("exp", call, [X], expect, **rest)


@pytest.mark.parametrize("case, quantity", [
    (wrong(lambda x: ops.exp(x) * 1.0001), "value"),
    (wrong(lambda x: ops.exp(em.stop_gradient(x) if x.dtype.bits == 32 else x)), "gradient"),
    (wrong(lambda x: ops.exp(x).astype("float32")), "value"),                   # dtype of the result
    (wrong(lambda x: ops.reshape(ops.exp(x), (-1,))), "value"),                  # its shape
    (wrong(lambda x: ops.exp(x) * (0.0 / (x - x))), "value"),                    # NaN
    (wrong(lambda x: ops.exp(x) if x.size else ops.zeros((1, 3)), empty=(0,)), "value and gradient, empty"),
    (wrong(lambda x: ops.exp(x) if x.ndim else ops.exp(x) * 2.0, scalar=True), "value, scalar"),
], ids=lambda x: "" if isinstance(x, Case) else x)
def test_a_wrong_op_fails(case, quantity):
    failed = {r["quantity"] for r in op_rows(case, "numpy") if not r["pass"]}
    assert quantity in failed
    assert all(r["pass"] for r in op_rows(wrong(ops.exp, empty=(0,), scalar=True), "numpy"))


def test_the_command_writes_table_page_and_json(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cases, "CASES", HONEST)
    assert parity_ops.run(tmp_path / "a.json", Output()) == 0
    shown, found, page = capsys.readouterr().out, read(tmp_path / "a.json"), (tmp_path / "a.html").read_text()
    assert {r["op"] for r in found["rows"]} == {"exp", "argsort", "sum"} and all(r["pass"] for r in found["rows"])
    assert {r["dtype"] for r in found["rows"] if r["op"] == "exp" and r["engine"] == "numpy:cpu"} == {
        "float32", "float16", "bfloat16", "float64", "complex64", "complex128"}
    assert f"{len(found['rows'])} passed, 0 failed" in shown and "exp" in shown and "bfloat16" in shown
    assert page.count("<tr><td>exp</td>") == 1 and "numpy:cpu" in page and "FAILED" not in page and "<h2>Failed" not in page

    monkeypatch.setattr(cases, "CASES", [wrong(lambda x: ops.exp(x) * 1.01)])
    assert parity_ops.run(tmp_path / "b.json", Output()) == 1
    assert "FAILED exp, numpy:cpu, float32, value" in capsys.readouterr().out
    assert "<h2>Failed" in (tmp_path / "b.html").read_text()


def test_machines_are_joined(tmp_path, capsys):
    mine = document(compare_ops(HONEST, ["numpy"]), em.__version__)
    (name,) = mine["machines"]
    other = json.loads(json.dumps(mine).replace(name, "Darwin arm64, <b>M3</b>"))
    other["rows"][0] |= {"pass": False, "error": 1e9}
    write(mine, tmp_path / "a.json")
    write(other, tmp_path / "b.json")
    assert parity_ops.join([tmp_path / "a.json", tmp_path / "b.json"], tmp_path / "all.json", Output()) == 1
    found, page = read(tmp_path / "all.json"), (tmp_path / "all.html").read_text()
    assert found["machines"].keys() == {name, "Darwin arm64, <b>M3</b>"} and len(found["rows"]) == 2 * len(mine["rows"])
    assert "<b>M3</b>" not in page and "&lt;b&gt;M3" in page                    # what a file says is text
    assert "1 failed" in capsys.readouterr().out
    assert merge([mine, mine])["rows"] == mine["rows"]
    table = render_ops(found["rows"])
    assert sum(line.startswith("exp ") for line in table.splitlines()) == 2


@pytest.mark.parametrize("text, fault", [
    ("{", "cannot be read as JSON"), ("[]", "got 'list'"), ('{"format": "other"}', "got 'other'"),
    ('{"format": "ember parity ops 1", "machines": {}, "rows": 3}', "expected machines and rows"),
    ('{"format": "ember parity ops 1", "machines": {"m": {}}, "rows": [{"op": "exp"}]}', "row 1 is none of ours"),
    ('{"format": "ember parity ops 1", "machines": {"m": {}}, "rows": [[]]}', "row 1 is none of ours")])
def test_files_that_are_none(tmp_path, text, fault):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ConfigError, match=fault):
        read(tmp_path / "a.json")
    with pytest.raises(ConfigError, match="cannot be read"):
        read(tmp_path / "missing.json")
    with pytest.raises(ConfigError, match="at least two files"):
        parity_ops.join([tmp_path / "a.json"], None, Output())


def test_every_op_has_rows_in_what_the_command_compares():
    assert {c.name for c in cases.CASES} >= ops.REGISTRY.keys()
    assert parity.compare_ops is compare_ops
