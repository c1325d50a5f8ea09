"""em.compile: same values, static leaves, new traces for new forms."""

import numpy as np
import pytest

import ember_ml as em


def test_values_forms_and_static_leaves(backend):
    calls = []

    def fn(state, x, scale):
        calls.append(1)
        return {"y": em.ops.tanh(state["w"] * x) * scale, "note": "static", "pair": (x + 1.0, 7)}
    fast = em.compile(fn)
    state, x = {"w": em.tensor([1.0, 2.0])}, em.tensor([0.5, -0.5])
    for scale in (2.0, 3.0, 2.0):
        got, want = fast(state, x, scale), fn(state, x, scale)
        np.testing.assert_allclose(got["y"].numpy(), want["y"].numpy(), rtol=1e-6)
        assert got["note"] == "static" and got["pair"][1] == 7 and got["pair"][0].tolist() == [1.5, 0.5]
    wider = fast({"w": em.ones((3,))}, em.ones((3,)), 2.0)
    assert wider["y"].shape == (3,)


def test_a_compiled_loss_has_the_same_gradient(backend):
    def loss(w, x):
        return (em.ops.sigmoid(em.ops.matmul(x, w)) ** 2).mean()
    w, x = em.random.normal(em.random.key(0), (4, 3)), em.random.normal(em.random.key(1), (5, 4))
    value, g = em.value_and_grad(loss)(w, x)
    fast_value, fast_g = em.value_and_grad(em.compile(loss))(w, x)
    assert fast_value.item() == pytest.approx(value.item(), rel=1e-6)
    np.testing.assert_allclose(fast_g.numpy(), g.numpy(), atol=1e-7)


def test_a_compiled_step_with_its_gradient(backend):
    def step(state):
        value, g = em.value_and_grad(lambda w: ((w - 3.0) ** 2).sum())(state["w"])
        return {"w": state["w"] - 0.1 * g, "count": state["count"] + 1}, value
    fast, eager = em.compile(step), step
    a = b = {"w": em.tensor([1.0, 2.0]), "count": em.tensor(0)}
    for _ in range(3):
        (a, va), (b, vb) = fast(a), eager(b)
        assert va.item() == pytest.approx(vb.item(), rel=1e-6)
    assert a["count"].item() == 3
    np.testing.assert_allclose(a["w"].numpy(), b["w"].numpy(), rtol=1e-6)


def test_mixed_engines_and_no_tensors_are_refused():
    with em.using("numpy"):
        x = em.ones((2,))
    with pytest.raises(em.BackendMismatch, match="numpy, torch.*x.to"):
        em.compile(lambda a, b: a)(x, x.to("torch:cpu"))
    with pytest.raises(em.BackendMismatch, match="got none"):
        em.compile(lambda a: a)(3)
