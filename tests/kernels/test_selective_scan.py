"""Mamba's selective scan: both twins against the loop in float64."""

import ml_dtypes
import numpy as np
import pytest

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
ALLOWED = {"float32": 2e-6, "float16": 1e-3, "bfloat16": 8e-3}


def case(batch, length, channels, states, dtype="float32"):
    rng = np.random.default_rng([batch, length, channels, states])
    shapes = {"dt": (batch, length, channels), "A": (channels, states), "B": (batch, length, states), "C": (batch, length, states),
              "D": (channels,), "initial": (batch, channels, states)}
    given = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    given["dt"], given["A"] = np.abs(given["dt"]), -np.abs(given["A"])
    return [rng.standard_normal((batch, length, channels)).astype(DTYPES[dtype]), *given.values()]


def loop(x, dt, A, B, C, D, initial):
    x, dt, A, B, C, D, h = (a.astype(np.float64) for a in (x, dt, A, B, C, D, initial))
    y = np.empty_like(x)
    for t in range(x.shape[1]):
        h = np.exp(dt[:, t, :, None] * A) * h + (dt[:, t] * x[:, t])[..., None] * B[:, t, None]
        y[:, t] = (h * C[:, t, None]).sum(-1) + D * x[:, t]
    return y, h


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [(1, 1, 1, 2), (2, 5, 3, 3), (1, 150, 33, 2), (2, 70, 40, 16)], ids=str)
def test_forward(machine, sizes, dtype):
    """Fewer steps than a segment, several tiles, more channels than lanes."""
    given = case(*sizes, dtype)
    y, last = map(machine.numpy, machine.kernels.KERNELS["selective_scan"](*map(machine.array, given)))
    for got, want, kind in ((y, loop(*given)[0], dtype), (last, loop(*given)[1], "float32")):
        assert got.dtype == DTYPES[kind] and got.shape == want.shape
        assert np.linalg.norm(got.astype(np.float64) - want) < ALLOWED[kind] * np.linalg.norm(want)


def test_extreme_steps(machine):
    """A step of 400 forgets all, one of 1e-7 nothing."""
    given = case(1, 40, 3, 2)
    given[1][:, 5], given[1][:, 10:15] = 400.0, 1e-7
    y, last = map(machine.numpy, machine.kernels.KERNELS["selective_scan"](*map(machine.array, given)))
    np.testing.assert_allclose(y, loop(*given)[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(last, loop(*given)[1], rtol=1e-4, atol=1e-5)
