"""Comparison rows, and parity of a model file: it passes on honest engines and fails on a changed one."""

import numpy as np
import pytest

import ember_ml as em
from ember_ml import backend as engines
from ember_ml import nn
from ember_ml.parity import compare, compare_run, render, row


def test_rows_measure_relative_to_the_largest_element():
    r = row("c", "numpy", "q", np.array([1.0, 4.02]), np.array([1.0, 4.0]), 1e-2)
    assert r["error"] == pytest.approx(0.005) and r["pass"]
    assert not row("c", "numpy", "q", np.array([1.0, 4.02]), np.array([1.0, 4.0]), 1e-3)["pass"]
    assert not row("c", "numpy", "q", np.ones(3), np.ones(4), 1.0)["pass"]
    assert not row("c", "numpy", "q", np.array([np.nan]), np.array([1.0]), 1.0)["pass"]
    assert row("c", "numpy", "q", np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5]), 0.0)["error"] == 0.25


def test_what_is_a_difference_of_larger_numbers_has_a_smallest_yardstick():
    got, expected = np.array([1e-3 + 1e-7]), np.array([1e-3])
    assert row("c", "e", "loss", got, expected, 1e-6)["error"] == pytest.approx(1e-4)
    assert row("c", "e", "loss", got, expected, 1e-6, least=1.0)["error"] == pytest.approx(1e-7)
    assert row("c", "e", "loss", 5e3 * got, 5e3 * expected, 1e-6, least=1.0)["error"] == pytest.approx(1e-4)


def test_compare_runs_on_every_engine_and_reports_errors_as_rows():
    present = [n for n in ("numpy", "torch", "mlx") if engines.installed(n)]
    x = np.linspace(0.1, 2.0, 7, dtype=np.float32)
    rows = compare("logs", lambda x: {"y": em.ops.log(x)}, x, present, {"y": np.log(x.astype(np.float64))}, 1e-6)
    assert [r["engine"] for r in rows] == present and all(r["pass"] for r in rows)
    broken = compare("shape", lambda x: em.ops.matmul(x, em.ops.reshape(x, (1, 7, 1))[0, :3]), x, ["numpy"], x, 1e-6)
    assert not broken[0]["pass"] and "ShapeError" in broken[0]["error"] and "FAILED" in render(broken)
    large = compare("memory", lambda x: em.zeros((1 << 20, 1 << 30)), x, ["numpy"], x, 1e-6)
    assert not large[0]["pass"] and "OutOfMemory" in large[0]["error"]


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("parity") / "model.safetensors"
    with em.using("numpy"):
        nn.HyenaDNA(nn.HyenaDNAConfig(vocab_size=5, d_input=8, n_layer=2, l_max=48, filter={"width": 8}),
                    key=em.random.key(0)).save(path)
    return path


def tokens():
    return np.random.default_rng(0).integers(0, 4, (1, 33))


def test_a_model_agrees_on_every_engine(model_file):
    present = [n for n in ("numpy", "torch", "mlx") if engines.installed(n)]
    rows = compare_run(model_file, tokens(), present, allowed=4, generated=24)
    assert len(rows) == 4 * len(present)
    assert all(r["pass"] for r in rows), render(rows)


def test_an_engine_that_computes_something_else_fails(model_file, monkeypatch):
    torch = engines.get("torch")
    gelu = em.ops.declare.REGISTRY["gelu_tanh"]
    monkeypatch.setitem(gelu.resolved, torch, lambda x: x * 1.001)
    rows = compare_run(model_file, tokens(), ["torch"], allowed=4, generated=0)
    failed = {r["quantity"].split()[0] for r in rows if not r["pass"]}
    assert {"logits", "loss", "worst"} <= failed
