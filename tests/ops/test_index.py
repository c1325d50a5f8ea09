"""Reading and writing by index, on every engine as in NumPy; what is out of range."""

import numpy as np
import pytest

import ember_ml as em
from ember_ml.errors import UnsupportedOp

A = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
FORMS = [0, -1, (1, 2), (slice(None), 1), slice(1, None), (..., 0), (None, 1), (slice(None, None, -1), 2),
         (slice(None), slice(3, 0, -2)), (..., None, slice(1, 4, 2)), (2, ..., -1), (slice(0, 0),), ()]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_reading(backend, form):
    assert np.array_equal(em.tensor(A)[form].numpy(), A[form])


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_writing(backend, form):
    x, want = em.tensor(A), A.copy()
    old = x[form]
    x[form] = -1.0
    want[form] = -1.0
    assert np.array_equal(x.numpy(), want) and np.array_equal(old.numpy(), A[form])
    x[form] = old
    assert np.array_equal(x.numpy(), A)


def test_tensor_indices(backend):
    x, i, j = em.tensor(A), np.array([2, 0, -1]), np.array([[1], [3]])
    ti, tj = em.tensor(i), em.tensor(j)
    assert np.array_equal(x[ti].numpy(), A[i])
    assert np.array_equal(x[ti, 1].numpy(), A[i, 1])
    assert np.array_equal(x[:, tj].numpy(), A[:, j])
    assert np.array_equal(x[ti, tj].numpy(), A[i, j])
    assert np.array_equal(em.ops.take(x, ti, axis=1).numpy(), np.take(A, i, 1))
    y = em.tensor(A)
    y[ti] = 5.0
    want = A.copy()
    want[i] = 5.0
    assert np.array_equal(y.numpy(), want)


@pytest.mark.parametrize("mode", ["auto", "tape"])
@pytest.mark.parametrize("form", [(1, slice(None, None, -1)), (..., None, 2), slice(0, 2)], ids=str)
def test_gradients(backend, form, mode):
    cot = np.random.default_rng(0).standard_normal(A[form].shape).astype(np.float32)
    want = np.zeros_like(A)
    want[form] = cot
    g = em.grad(lambda x: (x[form] * em.tensor(cot)).sum(), mode=mode)(em.tensor(A))
    np.testing.assert_allclose(g.numpy(), want, rtol=1e-6)


@pytest.mark.parametrize("mode", ["auto", "tape"])
def test_repeated_indices_add_up_in_the_gradient(backend, mode):
    i = em.tensor([1, 1, 0])
    g = em.grad(lambda x: (em.ops.take(x, i) * em.tensor([[1.0], [2.0], [4.0]])).sum(), mode=mode)(em.ones((3, 2)))
    assert g.tolist() == [[4.0, 4.0], [3.0, 3.0], [0.0, 0.0]]


def test_python_ints_out_of_range_always_raise(backend):
    x = em.tensor(A)
    for form in (3, -4, (0, 4)):
        with pytest.raises(IndexError, match="out of range"):
            x[form]
        with pytest.raises(IndexError):
            x[form] = 0.0
    with pytest.raises(IndexError, match="at most 3 indices"):
        x[0, 0, 0, 0]
    assert np.array_equal(x.numpy(), A)


@pytest.mark.parametrize("bad", [3, -4, 1000])
def test_tensor_indices_out_of_range(backend, bad):
    x, i = em.tensor(A), em.tensor([0, bad])
    calls = (lambda: x[i], lambda: em.ops.take(x, i), lambda: em.ops.take_along_axis(x, em.tensor([[[bad]]]), 0))
    for call in calls:
        if backend == "numpy":
            with pytest.raises(IndexError, match=f"expected indices in \\[-3, 2\\], got {bad}"):
                call()
        else:
            with em.debug_checks(), pytest.raises(IndexError, match=f"got {bad}"):
                call()
    if backend != "numpy":                                   # they clamp, so that no foreign memory is read
        assert np.array_equal(x[i].numpy()[1], A[2 if bad > 0 else 0])


@pytest.mark.parametrize("dtype", ["int8", "uint8", "uint32", "int64"])
def test_indices_of_any_integer_dtype(backend, dtype):
    """Also of one that cannot hold the length of the axis."""
    x = em.tensor(np.arange(600, dtype=np.float32))
    assert em.ops.take(x, em.tensor(np.array([5, 100, 0], dtype))).tolist() == [5.0, 100.0, 0.0]


def test_what_is_no_index(backend):
    x = em.tensor(A)
    for bad in ([0, 1], "a", 1.5, np.array([0])):
        with pytest.raises(TypeError, match="em.tensor"):
            x[bad]
    with pytest.raises(UnsupportedOp, match="integer indices, got dtype float32"):
        em.ops.take(x, em.tensor([0.0]))


def test_one_hot_topk_and_sort(backend):
    x = em.tensor([[0.1, 0.5, 0.5, -1.0], [2.0, 2.0, 2.0, 3.0]])
    values, where = em.ops.topk(x, 2)
    assert where.tolist() == [[1, 2], [3, 0]] and values.tolist() == [[0.5, 0.5], [3.0, 2.0]]
    assert em.ops.sort(x, descending=True)[1].tolist() == [3.0, 2.0, 2.0, 2.0]
    assert em.ops.one_hot(em.tensor([2, 0]), 3).tolist() == [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
