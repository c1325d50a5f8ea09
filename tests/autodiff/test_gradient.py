"""value_and_grad, grad, vjp, stop_gradient, checkpoint: forms, conventions, second order, and what is refused."""

import gc
import weakref

import numpy as np
import pytest

import ember_ml as em
from ember_ml import autodiff
from ember_ml.autodiff import tree

MODES = ["auto", "tape"]


@pytest.fixture(params=MODES)
def mode(request):
    return request.param


def test_gradients_have_the_form_of_the_argument(backend, mode):
    p = {"w": em.tensor([[1.0, 2.0], [3.0, 4.0]]), "rest": [em.tensor([1.0]), (em.tensor(2.0), em.tensor([3], dtype="int32"))]}

    def loss(p, scale):
        return (p["w"] ** 2).sum() * scale + p["rest"][0].sum() * p["rest"][1][0]

    value, g = em.value_and_grad(loss, mode=mode)(p, 3.0)
    assert value.item() == 92.0 and value.shape == ()
    assert g["w"].tolist() == [[6.0, 12.0], [18.0, 24.0]] and g["rest"][0].tolist() == [2.0]
    assert g["rest"][1][0].item() == 1.0 and g["rest"][1][1] is None          # integers have no gradient


def test_several_arguments_and_aux(backend, mode):
    def loss(x, y):
        return (x * y).sum(), {"sum": x + y, "name": "aux"}
    x, y = em.tensor([1.0, 2.0]), em.tensor([3.0, 5.0])
    (value, aux), (gx, gy) = em.value_and_grad(loss, (0, 1), has_aux=True, mode=mode)(x, y)
    assert value.item() == 13.0 and gx.tolist() == [3.0, 5.0] and gy.tolist() == [1.0, 2.0]
    assert aux["sum"].tolist() == [4.0, 7.0] and aux["name"] == "aux"
    grads, aux = em.grad(loss, 1, has_aux=True, mode=mode)(x, y)
    assert grads.tolist() == [1.0, 2.0] and aux["name"] == "aux"


def test_an_argument_without_a_path_gets_zeros(backend, mode):
    g = em.grad(lambda x, y: (x * 2.0).sum(), (0, 1), mode=mode)(em.ones((2,)), em.ones((3,)))
    assert g[0].tolist() == [2.0, 2.0] and g[1].tolist() == [0.0, 0.0, 0.0]


def test_promotion_and_broadcasting_are_undone(backend, mode):
    half, full = em.tensor([1.0, 2.0], dtype="float16"), em.ones((3, 2))
    g = em.grad(lambda h, f: (h * f).sum(), (0, 1), mode=mode)(half, full)
    assert str(g[0].dtype) == "float16" and g[0].tolist() == [3.0, 3.0]
    assert str(g[1].dtype) == "float32" and g[1].shape == (3, 2)


def test_complex_convention(backend, mode):
    """dL/dRe + i dL/dIm: |z|^2 gives 2 z, Re(z^2) gives 2 conj(z)."""
    z = em.tensor(np.array([1 + 2j, -0.5 + 0.25j], np.complex64))
    for fn, want in ((lambda z: em.ops.real(z * em.ops.conj(z)).sum(), 2 * z.numpy()),
                     (lambda z: em.ops.real(z * z).sum(), 2 * z.numpy().conj()),
                     (lambda z: em.ops.abs(z).sum(), z.numpy() / np.abs(z.numpy()))):
        np.testing.assert_allclose(em.grad(fn, mode=mode)(z).numpy(), want, rtol=1e-5)


def test_ties_on_the_tape(backend):
    x = em.tensor([1.0, 3.0, 3.0])
    assert em.grad(lambda x: em.ops.max(x), mode="tape")(x).tolist() == [0.0, 0.5, 0.5]
    assert em.grad(lambda x: em.ops.maximum(x, 3.0).sum(), mode="tape")(x).tolist() == [0.0, 0.5, 0.5]
    assert em.grad(lambda x: em.ops.relu(x - 1.0).sum(), mode="tape")(x).tolist() == [0.0, 1.0, 1.0]


def test_second_order(backend, mode):
    x = em.tensor([0.3, -0.7, 1.1])

    def inner(x):
        return (em.ops.tanh(x) * x * x).sum()

    def outer(x):
        return (em.grad(inner, mode=mode)(x) ** 2).sum()
    v = x.numpy().astype(np.float64)
    t = np.tanh(v)
    first = (1 - t * t) * v * v + 2 * v * t
    second = -2 * t * (1 - t * t) * v * v + 4 * v * (1 - t * t) + 2 * t
    np.testing.assert_allclose(em.grad(outer, mode=mode)(x).numpy(), 2 * first * second, rtol=1e-4)


def test_second_order_in_what_the_inner_function_has_from_outside(backend, mode):
    """sum((d/dr sum(r^2 w))^2) = sum(4 r^2 w^2), so its slope in w is 8 r^2 w."""
    r, w = em.tensor([1.0, 2.0]), em.tensor([3.0, 4.0])

    def outer(w):
        return (em.grad(lambda r: (r * r * w).sum(), mode=mode)(r) ** 2).sum()

    np.testing.assert_allclose(em.grad(outer, mode=mode)(w).numpy(), [24.0, 128.0], rtol=1e-6)


def test_a_write_after_use_does_not_change_the_gradient(backend, mode):
    def loss(x):
        y = x * 2.0
        z = (y * y).sum()                                    # uses y as it is now
        y[0] = 100.0                                         # and not as it is afterwards
        return z + y.sum()
    x = em.tensor([1.0, 2.0])
    value, g = em.value_and_grad(loss, mode=mode)(x)
    assert value.item() == 4.0 + 16.0 + 104.0
    assert g.tolist() == [8.0, 16.0 + 2.0]
    assert x.tolist() == [1.0, 2.0]


def test_vjp_pulls_back_any_output(backend, mode):
    x, w = em.tensor([1.0, 2.0]), em.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    out, pull = em.vjp(lambda x, w: {"y": em.ops.matmul(w, x), "s": x * 3.0}, x, w, mode=mode)
    gx, gw = pull({"y": em.tensor([1.0, 0.0, -1.0]), "s": em.tensor([1.0, 1.0])})
    assert out["y"].tolist() == [5.0, 11.0, 17.0]
    assert gx.tolist() == [1.0 - 5.0 + 3.0, 2.0 - 6.0 + 3.0] and gw.tolist() == [[1.0, 2.0], [0.0, 0.0], [-1.0, -2.0]]
    with pytest.raises(em.ShapeError, match="cotangents of shapes"):
        pull({"y": em.ones((2,)), "s": em.ones((2,))})


def test_stop_gradient(backend, mode):
    g = em.grad(lambda x: (em.stop_gradient(x * x) * x).sum(), mode=mode)(em.tensor([2.0, 3.0]))
    assert g.tolist() == [4.0, 9.0]
    assert em.stop_gradient({"a": em.ones((1,)), "b": 3})["b"] == 3


def test_checkpoint_gives_the_same_and_runs_twice(backend, mode):
    calls = []

    def body(x, w):
        calls.append(1)
        return {"y": em.ops.tanh(em.ops.matmul(x, w)), "z": x * 2.0}
    x, w = em.random.normal(em.random.key(0), (3, 4)), em.random.normal(em.random.key(1), (4, 4))

    def loss(x, w, fn):
        out = fn(x, w)
        return (out["y"] ** 2).sum() + out["z"].sum()
    plain = em.value_and_grad(loss, (0, 1), mode=mode)(x, w, body)
    calls.clear()
    again = em.value_and_grad(loss, (0, 1), mode=mode)(x, w, em.checkpoint(body))
    assert len(calls) >= 2
    for a, b in zip(tree.tensors(plain), tree.tensors(again)):
        # torch's own gradient runs inside the tape's here, and rounds sums that cancel in another order
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-6, atol=1e-6 * np.abs(b.numpy()).max())


def test_the_tape_frees_what_it_kept_without_a_collection():
    """Cycles between tensors and nodes would keep a step's arrays until the garbage collector happens to run."""
    seen = []
    gc.disable()
    try:
        with em.using("numpy"):
            def loss(x):
                y = em.ops.exp(x)
                a, b = em.ops.split(y * y, 2)                # an op with several outputs, too
                seen.extend(weakref.ref(t.data) for t in (y, a))
                return (a * b).sum()
            em.grad(loss)(em.ones((50,)))
        assert [r() is None for r in seen] == [True, True]
    finally:
        gc.enable()


@pytest.mark.parametrize("fn, error, words", [
    (lambda x: x * 2.0, em.ShapeError, "return a scalar, got shape \\(2,\\)"),
    (lambda x: 3.0, TypeError, "scalar EmberTensor, got float"),
    (lambda x: (x.sum(), 1), TypeError, "has_aux=True"),
    (lambda x: (x > 0).sum(), TypeError, "real floating-point scalar, got dtype int32"),
])
def test_misuse(backend, mode, fn, error, words):
    with pytest.raises(error, match=words):
        em.grad(fn, mode=mode)(em.ones((2,)))


def test_more_misuse(backend):
    with pytest.raises(TypeError, match="floating-point tensor among the differentiated"):
        em.grad(lambda x: x.sum())(em.tensor([1, 2]))
    with pytest.raises(ValueError, match="mode among"):
        em.grad(lambda x: x.sum(), mode="native")
    from ember_ml.ops.optimizer import adam_update
    one = em.ones(())
    with pytest.raises(em.UnsupportedOp, match="adam_update: has no gradient: an optimiser"):
        em.grad(lambda x: adam_update(one, one, x, x, x, x, beta1=0.9, beta2=0.9, eps=1e-8, decays=(0.0,))[0].sum(), mode="tape")(em.ones((2,)))


def test_a_network_agrees_native_and_tape(backend):
    key = em.random.key(5)
    p = {"a": em.random.normal(em.random.fold_in(key, 1), (6, 5)), "b": em.random.normal(em.random.fold_in(key, 2), (3, 6))}
    x, y = em.random.normal(em.random.fold_in(key, 3), (4, 5)), em.random.randint(em.random.fold_in(key, 4), (4,), 0, 3)

    def loss(p):
        h = em.ops.gelu_tanh(em.ops.matmul(x, p["a"].T))
        return em.ops.cross_entropy(em.ops.matmul(h, p["b"].T), y).mean()
    native, taped = (em.grad(loss, mode=m)(p) for m in MODES)
    for name in p:
        scale = np.abs(taped[name].numpy()).max()
        assert np.abs(native[name].numpy() - taped[name].numpy()).max() <= 1e-5 * scale


def test_trees():
    t = {"a": [1, (2, 3)], "b": {"c": 4}}
    leaves, form = tree.flatten(t)
    assert leaves == [1, 2, 3, 4] and tree.unflatten(form, leaves) == t and hash(form) == hash(tree.flatten(t)[1])
    assert tree.named(t) == {"a.0": 1, "a.1.0": 2, "a.1.1": 3, "b.c": 4}
    assert tree.map(lambda x, y: x + y, t, t)["b"]["c"] == 8
    with pytest.raises(ValueError, match="trees of one form"):
        tree.map(lambda x, y: x, t, {"a": 1})
    assert autodiff.tree is tree
