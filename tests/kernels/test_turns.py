"""Heads in turns: the same numbers, nothing computed before it is asked for, and less memory."""

import numpy as np
import pytest

mx = pytest.importorskip("mlx.core", reason="MLX is not built for this machine")

from ember_mlx.turns import in_turns  # noqa: E402


def _wide(u, k, mask=None):
    """Two outputs of few numbers, and in between 16 times as many as u has."""
    wide = u[..., None] * mx.arange(16.0)
    y = (wide * mx.repeat(k[:, :1], u.shape[1] // k.shape[0], axis=0)[..., None]).max(-1)
    return y, None, k * 2 if mask is None else k * mask.sum(0)[:, None]


def test_the_same_numbers_in_the_same_places():
    rng = np.random.default_rng(0)
    rows, filters = {"u": mx.array(rng.standard_normal((2, 10, 7)))}, {"k": mx.array(rng.standard_normal((5, 3)))}
    for masks in ({"mask": None}, {"mask": mx.array(rng.standard_normal((2, 5)))}):
        whole = _wide(**rows, **filters, **masks)
        for some in (1, 2, 5, 9):
            for got, want in zip(in_turns(_wide, some, 2, (1, 1, 0), rows, filters, masks), whole):
                assert got is want is None or np.array_equal(got, want)


def test_rows_in_turns():
    rng = np.random.default_rng(0)
    rows, masks = {"u": mx.array(rng.standard_normal((5, 4, 7))), "v": None}, {"mask": mx.array(rng.standard_normal((5, 2)))}

    def compute(u, v, k, mask):
        return (u.reshape(len(u), len(k), -1, 7) * k[:, :1, None] * mask[..., None, None]).reshape(u.shape), v

    filters = {"k": mx.array(rng.standard_normal((2, 3)))}
    whole, _ = compute(**rows, **filters, **masks)
    for few in (1, 2, 4):
        got, none = in_turns(compute, 1, few, (1, 1), rows, filters, masks)
        assert none is None and np.array_equal(got, whole)


def test_a_turn_waits_for_the_one_before():
    """Otherwise the large arrays of all turns are made first."""
    def peak(some):
        y, _, dk = in_turns(_wide, some, 1, (1, 1, 0), {"u": u}, {"k": k}, {})
        assert mx.get_active_memory() < before + 4096      # nothing is computed yet, there are a few constants
        mx.reset_peak_memory()
        mx.eval(y, dk)
        mx.synchronize()
        return mx.get_peak_memory() - before

    with mx.stream(mx.cpu):
        u, k = mx.ones((1, 32, 4096)), mx.ones((32, 4))
        mx.eval(u, k)
        before = mx.get_active_memory()
        assert peak(1) < peak(32) / 2
