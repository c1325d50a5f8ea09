"""The gradients of Mamba's selective scan: both twins against the recurrence backwards in float64."""

import numpy as np
import pytest

from ember_ml.kernels import scan
from tests.kernels.test_selective_scan import ALLOWED, DTYPES, case, loop

NAMES = ("x", "dt", "A", "B", "C", "D", "initial")


def gradients(g, g_last, x, dt, A, B, C, D, initial):
    """In float64, in the order of the arguments."""
    g, back, x, dt, A, B, C, D, h = (a.astype(np.float64) for a in (g, g_last, x, dt, A, B, C, D, initial))
    decay, states = np.exp(dt[..., None] * A), [h]
    for t in range(x.shape[1]):
        states.append(decay[:, t] * states[-1] + (dt[:, t] * x[:, t])[..., None] * B[:, t, None])
    d = {name: np.zeros(a.shape) for name, a in zip(NAMES, (x, dt, A, B, C, D, h))}
    for t in reversed(range(x.shape[1])):
        lam = g[:, t, :, None] * C[:, t, None] + back
        met = (lam * B[:, t, None]).sum(-1)
        d["x"][:, t] = D * g[:, t] + dt[:, t] * met
        d["dt"][:, t] = (lam * A * decay[:, t] * states[t]).sum(-1) + x[:, t] * met
        d["A"] += (lam * dt[:, t, :, None] * decay[:, t] * states[t]).sum(0)
        d["B"][:, t] = (lam * (dt[:, t] * x[:, t])[..., None]).sum(1)
        d["C"][:, t] = (g[:, t, :, None] * states[t + 1]).sum(1)
        d["D"] += (g[:, t] * x[:, t]).sum(0)
        back = decay[:, t] * lam
    d["initial"] = back
    return [d[name] for name in NAMES]


def cotangents(given):
    rng = np.random.default_rng(7)
    return rng.standard_normal(given[0].shape).astype(given[0].dtype), rng.standard_normal(given[-1].shape).astype(np.float32)


def run(machine, *arrays):
    return [machine.numpy(a) for a in machine.kernels.KERNELS["selective_scan_grad"](*map(machine.array, arrays))]


@pytest.mark.parametrize("sizes, dtype", [((1, 1, 1, 2), "float32"), ((2, 5, 3, 3), "float32"), ((1, 150, 33, 2), "float32"),
                                          ((2, 70, 40, 16), "float32"), ((1, 64, 2, 64), "float32"), ((2, 70, 3, 4), "float16"),
                                          ((2, 70, 3, 4), "bfloat16")], ids=str)
def test_gradients(machine, sizes, dtype):
    """Fewer steps than a segment, several tiles, tiles that are full, more channels than lanes, few and most states."""
    given = case(*sizes, dtype)
    up = cotangents(given)
    for name, got, want in zip(NAMES, run(machine, *up, *given), gradients(*up, *given), strict=True):
        kind = dtype if name == "x" else "float32"
        assert got.dtype == DTYPES[kind] and got.shape == want.shape, name
        error = np.linalg.norm(got.astype(np.float64) - want) / np.linalg.norm(want)
        assert error < ALLOWED[kind], f"{name}: {error:.1e}"


def test_the_definition_is_the_loop_s_gradient():
    """Central differences of the loop along one direction of all arguments."""
    given = case(2, 6, 3, 2)
    up = cotangents(given)
    along = [np.random.default_rng(i).standard_normal(a.shape) for i, a in enumerate(given)]

    def value(step):
        y, last = loop(*(a.astype(np.float64) + step * d for a, d in zip(given, along)))
        return (up[0].astype(np.float64) * y).sum() + (up[1].astype(np.float64) * last).sum()
    slope = sum((d * a).sum() for d, a in zip(gradients(*up, *given), along))
    assert slope == pytest.approx((value(1e-5) - value(-1e-5)) / 2e-5, rel=1e-7)


def test_extreme_steps(machine):
    """A step of 400 forgets all, one of 1e-7 nothing."""
    given = case(1, 80, 3, 2)
    given[1][:, 5], given[1][:, 10:15], given[1][:, 70] = 400.0, 1e-7, 400.0
    up = cotangents(given)
    for got, want in zip(run(machine, *up, *given), gradients(*up, *given)):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())


def test_what_is_not_finite_stays_in_its_sequence(machine):
    """A NaN in one sequence: what belongs to the other keeps its bits. Channels meet in B's and C's gradients alone."""
    given = case(2, 70, 3, 2)
    up = cotangents(given)
    clean = run(machine, *up, *given)
    given[0][0, 30, 1] = np.nan
    got = dict(zip(NAMES, run(machine, *up, *given)))
    for name, want in zip(NAMES, clean):
        if name not in "AD":
            assert np.array_equal(got[name][1], want[1]), name
    assert np.array_equal(got["x"][0][:, [0, 2]], clean[0][0][:, [0, 2]]) and np.isnan(got["B"][0, 30]).all()


def test_tiles_of_the_way_back():
    assert [scan.back_tiles(n) for n in (1, 8, 9, 64, 65, 1000)] == [1, 1, 1, 1, 2, 16]
