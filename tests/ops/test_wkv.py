"""RWKV-4's WKV against its defining sums, and against the plain loop of its two recurrences."""

import numpy as np
import pytest

import ember_ml as em
from ember_ml.errors import ShapeError
from ember_ml.ops.recurrence import wkv

torch = pytest.importorskip("torch", reason="the oracle of these tests is torch's autograd")
from tests.ops.oracle import check, check_slopes, near  # noqa: E402

RNG = np.random.default_rng(11)


def loop(k, v, w, u, top=None, bottom=None):
    """Without any protection from overflow: float64 has room enough."""
    top = torch.zeros_like(k[:, 0]) if top is None else top
    bottom = torch.zeros_like(k[:, 0]) if bottom is None else bottom
    ys = []
    for t in range(k.shape[1]):
        now, bonus = torch.exp(k[:, t]), torch.exp(k[:, t] + u)
        ys.append((top + bonus * v[:, t]) / (bottom + bonus))
        top, bottom = torch.exp(-w) * top + now * v[:, t], torch.exp(-w) * bottom + now
    return (torch.stack(ys, 1),)


def case(length, width=3):
    return {"k": RNG.standard_normal((2, length, width)), "v": RNG.standard_normal((2, length, width)),
            "w": RNG.uniform(0.001, 3.0, width), "u": RNG.standard_normal(width)}


@pytest.mark.parametrize("length, chunk", [(1, 1), (13, 1), (13, 5), (13, 13), (13, 256)])
def test_equals_the_loop(backend, length, chunk):
    check(backend, lambda **kw: wkv(**kw, chunk=chunk)[:1], loop, case(length))


def test_equals_the_defining_sums():
    a = case(9)
    want = np.zeros_like(a["k"])
    for t in range(9):
        weights = np.exp(np.stack([-(t - 1 - s) * a["w"] + a["k"][:, s] if s < t else a["u"] + a["k"][:, t]
                                   for s in range(t + 1)], 1))
        want[:, t] = (weights * a["v"][:, :t + 1]).sum(1) / weights.sum(1)
    with em.using("numpy"):
        near(wkv(**{n: em.tensor(x) for n, x in a.items()})[0], want, 1e-12, "wkv")


@pytest.mark.parametrize("decay", [1e-7, 30.0, 700.0])
def test_extreme_decays_and_large_keys(backend, decay):
    """Keys of +-60 would overflow a float32 state; a float64 loop still holds them."""
    arrays = case(20)
    arrays["w"][:] = decay
    arrays["k"] *= 60.0 / np.abs(arrays["k"]).max()
    check(backend, lambda **kw: wkv(**kw, chunk=7)[:1], loop, arrays, slack=10.0)


@pytest.mark.parametrize("chunk", [1, 5, 64])
def test_gradients_are_slopes(chunk):
    """The running maximum is a constant to the gradient: that may not show."""
    check_slopes(lambda **kw: wkv(**kw, chunk=chunk)[:1], case(11))


def test_the_state_continues(backend):
    a = {n: em.tensor(x.astype("float32")) for n, x in case(17).items()}
    whole, _ = wkv(**a)
    first, state = wkv(a["k"][:, :6], a["v"][:, :6], a["w"], a["u"])
    parts = [first]
    for t in range(6, 17):
        y, state = wkv(a["k"][:, t:t + 1], a["v"][:, t:t + 1], a["w"], a["u"], state)
        parts.append(y)
    near(em.ops.concat(parts, axis=1), whole.numpy(), 1e-5, "steps")


def test_compiled_is_eager(backend):
    if backend == "numpy":
        pytest.skip("NumPy compiles nothing")
    check(backend, lambda **kw: wkv(**kw, chunk=8)[:1], loop, case(17), modes=("auto",), compiled=True)


@pytest.mark.parametrize("name, shape", [("k", (2, 5)), ("v", (2, 5, 2)), ("w", (2,)), ("u", (2, 3))])
def test_misuse_is_told(name, shape):
    with em.using("numpy"):
        arrays = {n: em.tensor(a) for n, a in case(5).items()}
        with pytest.raises(ShapeError, match=f"wkv: expected {name}"):
            wkv(**{**arrays, name: em.ops.ones(shape)})
