"""Arrays and time series: what a batch holds, how it is scaled, the plain models beside, and what is said of files that do not fit."""

import numpy as np
import pytest

from ember_ml.data import open_source
from ember_ml.data.features.baselines import nearest_neighbour, ridge
from ember_ml.errors import ConfigError, DataError

RNG = np.random.default_rng(0)


def save(tmp_path, **arrays):
    np.savez(tmp_path / "x.npz", **arrays)
    return {"kind": "arrays", "files": str(tmp_path / "x.npz"), "batch": 8}


def toy(n=60, width=10, channels=3):
    y = RNG.integers(0, 4, n)
    return {"x": RNG.normal(5.0, 2.0, (n, width, channels)) + y[:, None, None], "y": y}


def test_classes_scaled_by_the_training_part(tmp_path):
    arrays = toy()
    source = open_source(save(tmp_path, **arrays), 3)
    assert (source.task, source.channels, source.classes) == ("classification", 3, 4)
    train, held = np.concatenate([x for x, _ in [source._lay(source._train, np.arange(len(source._train.x)))]]), list(source.held_out())
    assert np.allclose(train.mean((0, 1)), 0, atol=1e-6) and np.allclose(train.std((0, 1)), 1, atol=1e-6)
    assert len(train) + sum(len(y) for _, y in held) == 60 and 4 <= sum(len(y) for _, y in held) <= 25
    x, y = source.batch(0)
    assert x.dtype == np.float32 and y.dtype == np.int32 and x.shape == (8, 10, 3)
    for row, label in zip(x, y):                                # each row with its own label
        at = np.flatnonzero(np.isclose(source.scale.undo(row), arrays["x"], atol=1e-5).all((1, 2)))
        assert len(at) == 1 and arrays["y"][at[0]] == label
    again = open_source(save(tmp_path, **arrays), 3)
    assert all(np.array_equal(a, b) for i in (9, 2, 0) for a, b in zip(again.batch(i), source.batch(i)))


def test_lengths_are_handed_on_and_nothing_of_the_padding_counts(tmp_path):
    arrays = toy(width=20)
    lengths = RNG.integers(3, 21, 60)
    for row, n in zip(arrays["x"], lengths):
        row[n:] = 1e6                                           # must leave no trace in scale or batches
    source = open_source(save(tmp_path, lengths=lengths, **arrays), 0)
    for x, n, y in [source.batch(i) for i in range(source.per_epoch)] + list(source.held_out()):
        assert n.dtype == np.int32 and x.shape[1] == min(20, -(-n.max() // 8) * 8)
        assert np.abs(x).max() < 10 and all((row[k:] == 0).all() for row, k in zip(x, n))
    assert source.lengths().sum() == lengths.sum()


def test_the_part_named_test_is_judged_on(tmp_path):
    arrays = toy()
    source = open_source(save(tmp_path, x_test=arrays["x"][:7], y_test=arrays["y"][:7], **arrays), 0)
    assert source.describe() == "60 sequences of length 10, 3 channels, 4 classes to train on, 7 held out"


def test_regression_with_scaled_targets(tmp_path):
    x = RNG.normal(size=(200, 5))
    y = np.stack([3.0 * x[:, 0] - x[:, 4] + 100.0, 50.0 * x[:, 2]], 1)
    source = open_source({**save(tmp_path, x=x, y=y), "task": "regression", "batch": 16}, 0)
    assert (source.task, source.outputs, source.channels) == ("regression", 2, 1)
    _, targets = source.batch(0)
    assert targets.shape == (16, 2) and targets.dtype == np.float32 and np.abs(targets).max() < 5
    scores = source.baselines()
    assert scores["mean of the targets"] == pytest.approx(1.0, abs=0.5) and scores["ridge regression"] < 1e-6


def test_npy_files_are_mapped_not_read(tmp_path):
    arrays = toy()
    for name, a in arrays.items():
        np.save(tmp_path / f"{name}.npy", a)
    source = open_source({"kind": "arrays", "x": str(tmp_path / "x.npy"), "y": str(tmp_path / "y.npy"), "batch": 8}, 0)
    assert source.batch(0)[0].shape == (8, 10, 3) and [f["name"] for f in source.fingerprint()] == ["x.npy", "y.npy"]


@pytest.mark.parametrize("change, words", [
    (lambda a: {"X": a["x"], "y": a["y"]}, "expected an array 'x'; got 'X', 'y'"),
    (lambda a: {"x": a["x"], "labels": a["y"]}, "expected an array 'y'; got 'x', 'labels'"),
    (lambda a: {**a, "y": a["y"][:-1]}, "as many rows in 'y' as in 'x', 60; got shape \\(59,\\)"),
    (lambda a: {**a, "y": a["y"] + 0.5}, 'classes, integers .N,. from 0 on, got float64 .*task = "regression"'),
    (lambda a: {**a, "y": a["y"] - 1}, "integers .N,. from 0 on"),
    (lambda a: {**a, "lengths": np.full(60, 11)}, "integers from 1 to 10, the length of 'x'; got int64 from 11 to 11"),
    (lambda a: {**a, "x": np.where(np.arange(60)[:, None, None] == 7, np.nan, a["x"])}, "finite numbers in 'x'; row 7"),
    (lambda a: {**a, "x": a["x"].astype(str)}, "of real numbers"),
    (lambda a: {**a, "x": a["x"][0, 0]}, "of real numbers .N, length, channels. or .N, length., got float64 .3,"),
    (lambda a: {**a, "x_test": a["x"], "y_test": a["y"] + 4}, "class 7 is judged on, but none of the training"),
    (lambda a: {**a, "x_test": a["x"][:, :, :2], "y_test": a["y"]}, "expected 3 channels to judge on"),
])
def test_refuses_arrays(tmp_path, change, words):
    with pytest.raises(DataError, match=words):
        open_source(save(tmp_path, **change(toy())), 0)


def test_refuses_files(tmp_path):
    table = save(tmp_path, **toy())
    raw = (tmp_path / "x.npz").read_bytes()
    (tmp_path / "x.npz").write_bytes(raw[:-50])
    with pytest.raises(DataError, match="cannot be read as .npz arrays .*cut short"):
        open_source(table, 0)
    np.save(tmp_path / "x.npy", np.zeros((5, 4)))
    (tmp_path / "x.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:-8])
    with pytest.raises(DataError, match="x.npy: cannot be read as a .npy array .*cut short"):
        open_source({"kind": "arrays", "x": str(tmp_path / "x.npy"), "y": str(tmp_path / "x.npy"), "batch": 1}, 0)
    np.savez(tmp_path / "y.npz", x=np.array([{}], object), y=np.zeros(1))
    with pytest.raises(DataError, match="y.npz: cannot be read as .npz arrays"):           # it would need pickle
        open_source({**table, "files": str(tmp_path / "y.npz")}, 0)
    with pytest.raises(ConfigError, match="one .npz file"):
        open_source({**table, "files": str(tmp_path / "x.npy")}, 0)


def wave(tmp_path, rows=300):
    t = np.arange(rows)
    lines = ["day,tide,noise", *(f"2020-{i},{np.sin(i / 5):.6f},{i % 7}" for i in t)]
    (tmp_path / "s.csv").write_text("\n".join(lines) + "\n")
    return {"kind": "series", "file": str(tmp_path / "s.csv"), "length": 20, "horizon": 4, "batch": 8, "targets": ["tide"]}


def test_windows_and_what_follows(tmp_path):
    source = open_source(wave(tmp_path), 1)
    assert (source.task, source.channels, source.outputs) == ("regression", 2, 4)
    tide = np.array([float(line.split(",")[1]) for line in (tmp_path / "s.csv").read_text().splitlines()[1:]])
    scaled = (tide - tide[:240].mean()) / tide[:240].std()

    def starts(x, y):
        away = np.abs(np.lib.stride_tricks.sliding_window_view(scaled, 24) - np.concatenate([x[:, :, 0], y], 1)[:, None]).max(2)
        assert (away.min(1) < 1e-5).all()
        return away.argmin(1).tolist()

    seen = [s for i in range(source.per_epoch) for s in starts(*source.batch(i))]
    assert len(set(seen)) == len(seen) == 216 and max(seen) <= 240 - 24        # nothing held out is trained on
    judged = [s for x, y in source.held_out() for s in starts(x, y)]
    assert judged == list(range(220, 277, 4))                                  # every held-out step is forecast once
    scores = source.baselines()
    assert scores["ridge regression"] < 1e-4 < scores["last value"] < scores["mean of the targets"]


@pytest.mark.parametrize("edit, words", [
    (lambda t: t.replace("2020-30,", "2020-30,x"), "line 32: expected a number in column 'tide', got 'x-0.2"),
    (lambda t: t[:-3], "line 301: expected 3 cells, got 2; the file may end in mid-line"),
    (lambda t: t.replace("2020-30,", "2020-30,,"), "line 32: expected 3 cells, got 4"),
    (lambda t: t.replace("2020-30,-0.279415", "2020-30,nan"), "column 'tide' has another at step 30"),
    (lambda t: "\n".join(t.splitlines()[:20]), "expected at least 31 steps to train on and 4 held out, for windows of 20 . 4; got 16 and 3"),
    (lambda t: "", "the file has 0 lines"),
])
def test_refuses_series(tmp_path, edit, words):
    table = wave(tmp_path)
    (tmp_path / "s.csv").write_text(edit((tmp_path / "s.csv").read_text()))
    with pytest.raises(DataError, match=words):
        open_source(table, 0)


def test_refuses_columns(tmp_path):
    with pytest.raises(DataError, match="expected a column 'tides'; got tide, noise; did you mean 'tide'"):
        open_source({**wave(tmp_path), "columns": ["tides"]}, 0)


def test_ridge_and_neighbours_against_their_definitions():
    x, y = RNG.normal(size=(40, 6)), RNG.normal(size=(40, 2))
    found, best = ridge(x, y, x), None
    for scale in 10.0 ** np.arange(-3, 4):                                     # leave each row out in turn, solve anew
        def solve(rows, at, lam=scale * 40 / 1000):
            mx, my = x[rows].mean(0), y[rows].mean(0)
            a = x[rows] - mx
            return (x[at] - mx) @ np.linalg.solve(a.T @ a + lam * np.eye(6), a.T @ (y[rows] - my)) + my
        error = np.mean([np.square(solve(np.delete(np.arange(40), i), i) - y[i]).mean() for i in range(40)])
        if best is None or error < best[0]:
            best = error, solve(np.arange(40), np.arange(40))
    assert np.allclose(found, best[1], atol=1e-8)
    test = RNG.normal(size=(150, 6))
    labels = np.arange(40)
    assert np.array_equal(nearest_neighbour(x, labels, test), np.square(test[:, None] - x).sum(-1).argmin(1))
