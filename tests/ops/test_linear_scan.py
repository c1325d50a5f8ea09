"""h_t = a_t h_{t-1} + b_t against the plain loop: values, gradients, resets, extreme decays, complex numbers, half precision."""

import numpy as np
import pytest

import ember_ml as em
from ember_ml.errors import ShapeError
from ember_ml.ops.declare import REGISTRY
from ember_ml.ops.recurrence import linear_scan

torch = pytest.importorskip("torch", reason="the oracle of these tests is torch's autograd")
from tests.ops.oracle import check, check_slopes, near  # noqa: E402

RNG = np.random.default_rng(3)


def loop(a, b, initial=None, reset=None):
    h = torch.zeros_like(b[:, 0]) if initial is None else initial
    states = []
    for t in range(b.shape[1]):
        decay = a[:, t] if reset is None else a[:, t] * (~reset[:, t, None]).to(a.dtype)
        h = decay * h + b[:, t]
        states.append(h)
    return torch.stack(states, 1), h


def case(length, width=3, batch=2, complex_valued=False):
    def normal(*shape):
        x = RNG.standard_normal(shape)
        return x + 1j * RNG.standard_normal(shape) if complex_valued else x
    a = RNG.uniform(0.0, 1.0, (batch, length, width)) * (np.exp(1j * RNG.uniform(-3, 3, (batch, length, width)))
                                                        if complex_valued else 1.0)
    return {"a": a, "b": normal(batch, length, width), "initial": normal(batch, width)}


@pytest.mark.parametrize("length", [1, 2, 3, 16, 17, 50])
def test_equals_the_loop(backend, length):
    check(backend, linear_scan, loop, case(length))


def test_without_an_initial_state_and_with_more_axes(backend):
    arrays = {"a": RNG.uniform(0, 1, (2, 9, 2, 3)), "b": RNG.standard_normal((2, 9, 2, 3))}
    check(backend, linear_scan, loop, arrays)


def test_complex_decays(backend):
    check(backend, linear_scan, loop, case(19, complex_valued=True))


def test_decays_broadcast(backend):
    arrays = {"a": RNG.uniform(0, 1, (3,)), "b": RNG.standard_normal((2, 11, 3))}
    check(backend, linear_scan, lambda a, b: loop(a.expand(b.shape), b), arrays)


def test_resets_forget_what_came_before(backend):
    arrays = {**case(23), "reset": RNG.random((2, 23)) < 0.3}
    arrays["reset"][0, 0], arrays["reset"][1, 22] = True, True
    check(backend, linear_scan, loop, arrays, ["a", "b", "initial"])


@pytest.mark.parametrize("decay", [0.0, 1.0 - 1e-7, 1.0, -1.0, 1e-30])
def test_extreme_decays(backend, decay):
    arrays = case(40)
    arrays["a"] = np.where(RNG.random(arrays["a"].shape) < 0.8, decay, arrays["a"])
    check(backend, linear_scan, loop, arrays)


def test_log_decays_keep_what_a_float_cannot_tell_from_one(backend):
    """log a = -1e-9: the decay is 1 in float32; -inf: the decay is 0."""
    arrays = case(30)
    arrays["log_a"] = -RNG.uniform(0, 3, arrays.pop("a").shape)
    arrays["log_a"][0, :, 0] = -1e-9
    check(backend, lambda log_a, b, initial: linear_scan(log_a, b, initial, log_decay=True),
          lambda log_a, b, initial: loop(torch.exp(log_a), b, initial), arrays)
    arrays["log_a"][1, 4] = -np.inf
    check(backend, lambda log_a, b, initial: linear_scan(log_a, b, initial, log_decay=True),
          lambda log_a, b, initial: loop(torch.exp(log_a), b, initial), arrays, ["b", "initial"])


@pytest.mark.parametrize("dtype, eps", [("float16", 2.0 ** -10), ("bfloat16", 2.0 ** -7)])
def test_half_precision_keeps_its_state_in_float32(backend, dtype, eps):
    """4000 additions of 2^-13 are lost in a half-precision state; the last state comes back in float32."""
    b = em.ops.full((1, 4000, 2), 2.0 ** -13).astype(dtype)
    h, final = linear_scan(b.ones_like(), b)
    assert str(h.dtype) == dtype and str(final.dtype) == "float32"
    np.testing.assert_allclose(final.numpy(), 4000 * 2.0 ** -13, rtol=1e-6)
    np.testing.assert_allclose(h.astype("float32").numpy()[0, :, 0], np.arange(1, 4001) * 2.0 ** -13, rtol=eps)
    ga, gb = em.grad(lambda a, b: linear_scan(a, b)[1].sum(), (0, 1))(b.ones_like(), b)
    assert str(ga.dtype) == dtype and (gb.astype("float32").numpy() == 1.0).all()
    np.testing.assert_allclose(ga.astype("float32").numpy()[0, 1:, 0], np.arange(1, 4000) * 2.0 ** -13, rtol=2 * eps)


@pytest.mark.parametrize("length", [1, 7, 18])
def test_gradients_are_slopes(length):
    check_slopes(linear_scan, case(length))


def test_two_pieces_are_one(backend):
    arrays = {n: em.tensor(a.astype("float32")) for n, a in case(21).items()}
    whole, last = linear_scan(**arrays)
    first, middle = linear_scan(arrays["a"][:, :8], arrays["b"][:, :8], arrays["initial"])
    second, end = linear_scan(arrays["a"][:, 8:], arrays["b"][:, 8:], middle)
    near(em.ops.concat([first, second], axis=1), whole.numpy(), 1e-6, "states")
    near(end, last.numpy(), 1e-6, "last state")


def test_compiled_is_eager(backend):
    if backend == "numpy":
        pytest.skip("NumPy compiles nothing")
    check(backend, linear_scan, loop, case(17), modes=("auto",), compiled=True)


def test_second_order(backend):
    """The slope of the gradient along a direction, against torch's double backward of the loop."""
    arrays = case(7)
    v = {n: RNG.standard_normal(a.shape) for n, a in arrays.items()}
    leaves = {n: torch.tensor(a, requires_grad=True) for n, a in arrays.items()}
    first = torch.autograd.grad(loop(**leaves)[0].pow(3).sum(), list(leaves.values()), create_graph=True)
    want = torch.autograd.grad(sum((g * torch.tensor(v[n])).sum() for n, g in zip(leaves, first)), list(leaves.values()))
    dtype = "float32" if backend == "mlx" else "float64"
    given = [em.tensor(a.astype(dtype)) for a in arrays.values()]

    def slope(*values):
        grads = em.grad(lambda a, b, i: (linear_scan(a, b, i)[0] ** 3).sum(), (0, 1, 2))(*values)
        return sum(((g * em.tensor(v[n].astype(dtype))).sum() for n, g in zip(arrays, grads)), start=em.tensor(0.0).astype(dtype))

    for got, expected in zip(em.grad(slope, (0, 1, 2))(*given), want):
        near(got, expected.numpy(), 1e-4 if backend == "mlx" else 1e-10, "second order")


@pytest.mark.parametrize("name", ["linear_scan_rows", "linear_scan_grad"])
@pytest.mark.parametrize("length", [1, 10, 37])
def test_native_loops_are_the_composite(backend, name, length):
    """The composite serves MLX on a CPU and compilers; on every engine it must say what the native loop says."""
    c = {n: em.tensor(a.astype("float32")) for n, a in case(length).items()}
    h, _ = linear_scan(**c)
    args = (c["a"], c["b"], c["initial"]) if name == "linear_scan_rows" else (c["b"], c["initial"] * 0.5, c["a"], h, c["initial"])
    op = REGISTRY[name]
    public = getattr(__import__("ember_ml.ops.recurrence.linear_scan", fromlist=[name]), name)
    for got, want in zip(public(*args), op.body(*args)):
        near(got, want.numpy(), 1e-5, name)


@pytest.mark.parametrize("shapes, says", [
    (dict(a=(2, 4, 3), b=(2, 0, 3)), "length >= 1"), (dict(a=(3,), b=(3,)), "length >= 1"),
    (dict(a=(2, 4, 3), b=(2, 4, 3), initial=(3,)), "initial of shape"),
    (dict(a=(2, 4, 3), b=(2, 4, 3), reset=(4, 2)), "reset of shape"), (dict(a=(2, 4, 5), b=(2, 4, 3)), "a of shape")])
def test_misuse_is_told(shapes, says):
    with em.using("numpy"), pytest.raises(ShapeError, match=says):
        linear_scan(**{n: em.ops.zeros(s) for n, s in shapes.items()})
