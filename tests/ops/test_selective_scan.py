"""Mamba's selective scan against the plain loop, and its memory."""

import numpy as np
import pytest

import ember_ml as em
from ember_ml.errors import ShapeError
from ember_ml.ops.recurrence import over_chunks, selective_scan

torch = pytest.importorskip("torch", reason="the oracle of these tests is torch's autograd")
from tests.ops.oracle import check, check_slopes, near  # noqa: E402

RNG = np.random.default_rng(5)


def loop(x, dt, A, B, C, D=None, initial=None):
    h = torch.zeros(x.shape[0], *A.shape, dtype=x.dtype) if initial is None else initial
    ys = []
    for t in range(x.shape[1]):
        h = torch.exp(dt[:, t, :, None] * A) * h + (dt[:, t] * x[:, t])[..., None] * B[:, t, None]
        ys.append((h * C[:, t, None]).sum(-1) + (0 if D is None else D * x[:, t]))
    return torch.stack(ys, 1), h


def case(length, batch=2, channels=4, state=3):
    return {"x": RNG.standard_normal((batch, length, channels)), "dt": RNG.uniform(0.01, 1.0, (batch, length, channels)),
            "A": -RNG.uniform(0.1, 3.0, (channels, state)), "B": RNG.standard_normal((batch, length, state)),
            "C": RNG.standard_normal((batch, length, state)), "D": RNG.standard_normal(channels),
            "initial": RNG.standard_normal((batch, channels, state))}


@pytest.mark.parametrize("length, chunk", [(1, 1), (13, 1), (13, 5), (13, 13), (13, 64), (13, None)])
def test_equals_the_loop(backend, length, chunk):
    check(backend, lambda **kw: selective_scan(**kw, chunk=chunk), loop, case(length))


def test_without_skip_and_initial_state(backend):
    arrays = case(9)
    del arrays["D"], arrays["initial"]
    check(backend, lambda **kw: selective_scan(**kw, chunk=4), loop, arrays)


@pytest.mark.parametrize("chunk", [1, 5, None])
def test_gradients_are_slopes(chunk):
    check_slopes(lambda **kw: selective_scan(**kw, chunk=chunk), case(11))


def test_extreme_steps(backend):
    """dt A of -1000 forgets all (a decay of zero); of -1e-7 nothing."""
    arrays = case(20)
    arrays["dt"][:, 5], arrays["dt"][:, 10:15] = 400.0, 1e-7
    check(backend, lambda **kw: selective_scan(**kw, chunk=6), loop, arrays)


def test_compiled_is_eager(backend):
    if backend == "numpy":
        pytest.skip("NumPy compiles nothing")
    check(backend, lambda **kw: selective_scan(**kw, chunk=8), loop, case(17), modes=("auto",), compiled=True)


@pytest.mark.parametrize("dtype, eps", [("float16", 2.0 ** -10), ("bfloat16", 2.0 ** -7)])
def test_half_precision_is_float32_inside(backend, dtype, eps):
    rounded = {n: em.tensor(a.astype("float32")).astype(dtype) for n, a in case(30).items()}
    y, final = selective_scan(**rounded, chunk=8)
    assert str(y.dtype) == dtype and str(final.dtype) == "float32"
    want, last = loop(**{n: torch.tensor(t.astype("float32").numpy()) for n, t in rounded.items()})
    near(y.astype("float32"), want.numpy(), eps, "y")
    near(final, last.numpy(), 1e-5, "final state")


def test_memory_does_not_hold_the_expanded_states():
    """MLX: backward over 1024 steps; the expanded states would be 16 times x, for each of several intermediate results."""
    mx = pytest.importorskip("mlx.core")
    with em.using("mlx"):
        arrays = {n: em.tensor(a.astype("float32")) for n, a in case(1024, batch=1, channels=64, state=16).items()}
        values = list(arrays.values())

        def loss(*args):
            return (selective_scan(**dict(zip(arrays, args)), chunk=16)[0] ** 2).sum()

        mx.eval([v.data for v in values])
        mx.reset_peak_memory()
        mx.eval([g.data for g in em.grad(loss, tuple(range(7)))(*values)])
        expanded = 1024 * 64 * 16 * 4
        assert mx.get_peak_memory() - mx.get_active_memory() < expanded * 0.8


def test_over_chunks_takes_any_function(backend):
    """A carry of two tensors, two outputs, a weight, an integer input that has no gradient."""
    def fn(carry, xs, weights):
        (s, n), (x, k), (w,) = carry, xs, weights
        y = em.ops.cumsum(x * w, axis=1) + em.ops.expand_dims(s, 1)
        return (y[:, -1], n + x.sum(axis=1)), (y, y * k.astype(x.dtype))

    def plain(s, n, x, w, k=torch.tensor(np.arange(22).reshape(2, 11) % 3)):
        y = torch.cumsum(x * w, 1) + s[:, None]
        return y[:, -1], n + x.sum(1), y, y * k[..., None]

    arrays = {"s": RNG.standard_normal((2, 3)), "n": RNG.standard_normal((2, 3)), "x": RNG.standard_normal((2, 11, 3)),
              "w": RNG.standard_normal(3)}

    def ours(s, n, x, w):
        k = em.tensor(np.arange(22, dtype=np.int32).reshape(2, 11) % 3)
        carry, ys = over_chunks(fn, (s, n), (x, em.ops.expand_dims(k, -1)), (w,), chunk=4)
        return (*carry, *ys)

    check(backend, ours, plain, arrays)


@pytest.mark.parametrize("name, shape, says", [("dt", (2, 5, 3), "dt of shape"), ("A", (4,), "A \\(channels"), ("B", (2, 5), "B of shape"),
                                               ("D", (5,), "D of shape"), ("initial", (2, 3, 4), "initial of shape"),
                                               ("x", (2, 0, 4), "length >= 1")])
def test_misuse_is_told(name, shape, says):
    with em.using("numpy"):
        arrays = {n: em.tensor(a) for n, a in case(5).items()}
        with pytest.raises(ShapeError, match=says):
            selective_scan(**{**arrays, name: em.ops.ones(shape)})
