"""The experts' gated activation and its gradients: both twins, through the shipped launchers, against float64 NumPy."""

import ml_dtypes
import numpy as np
import pytest

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
ROUNDING = {"float32": 4e-7, "float16": 2.0 ** -11, "bfloat16": 2.0 ** -8}

#: (rows, width): one element, odd widths, widths of whole packs, several groups along both axes
SIZES = [(1, 1), (3, 5), (9, 33), (5, 64), (17, 264), (2, 2056)]


def case(rows, width, dtype):
    rng = np.random.default_rng([rows, width])
    h = (3.0 * rng.standard_normal((rows, 2 * width))).astype(DTYPES[dtype])
    return rng.standard_normal((rows, width)).astype(DTYPES[dtype]), h, rng.random((rows, 1), np.float32)


def forward(h):
    gate, up = np.split(h.astype(np.float64), 2, axis=1)
    return gate / (1.0 + np.exp(-gate)) * up


def backward(g, h, w):
    """d_h, w a, d_w of sum(w g forward(h)), written out."""
    g, (gate, up) = g.astype(np.float64), np.split(h.astype(np.float64), 2, axis=1)
    s = 1.0 / (1.0 + np.exp(-gate))
    by_gate = g * up * s * (1.0 + gate * (1.0 - s))
    return w * np.concatenate([by_gate, g * gate * s], 1), w * gate * s * up, (g * gate * s * up).sum(1)


def run(machine, name, *arrays):
    out = machine.kernels.KERNELS[name](*map(machine.array, arrays))
    return [machine.numpy(x) for x in out] if isinstance(out, tuple) else machine.numpy(out)


def close(got, want, dtype):
    assert got.shape == want.shape
    error, scale = np.abs(got.astype(np.float64) - want), max(np.abs(want).max(initial=0.0), 1e-3)
    assert error.max(initial=0.0) <= 2 * ROUNDING[dtype] * scale, f"{error.max() / scale:.2e}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_forward(machine, sizes, dtype):
    _, h, _ = case(*sizes, dtype)
    y = run(machine, "moe_swiglu", h)
    assert y.dtype == DTYPES[dtype]
    close(y, forward(h), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_gradients(machine, sizes, dtype):
    arrays = case(*sizes, dtype)
    got, want = run(machine, "moe_swiglu_backward", *arrays), backward(*arrays)
    for one, other, kind in zip(got, want, (dtype, dtype, "float32")):
        assert one.dtype == DTYPES[kind]
        close(one, other, kind)


def test_large_gates_do_not_overflow(machine):
    h = np.array([[-200.0, 200.0, -90.0, 90.0, 2.0, 2.0, 2.0, 2.0]], np.float32)
    close(run(machine, "moe_swiglu", h), np.array([[0.0, 400.0, -90.0 * np.exp(-90.0) * 2.0, 180.0]]), "float32")
    d_h = run(machine, "moe_swiglu_backward", np.ones((1, 4), np.float32), h, np.ones((1, 1), np.float32))[0]
    close(d_h, np.array([[0.0, 2.0, 0.0, 2.0, 0.0, 200.0, 0.0, 90.0]]), "float32")


@pytest.mark.parametrize("shape", [(0, 4), (3, 0)], ids=["no rows", "no columns"])
def test_nothing_to_do(machine, shape):
    g, h, w = case(*shape, "float32")
    assert run(machine, "moe_swiglu", h).shape == shape
    d_h, scaled, d_w = run(machine, "moe_swiglu_backward", g, h, w)
    assert d_h.shape == h.shape and scaled.shape == shape and d_w.tolist() == [0.0] * shape[0]
