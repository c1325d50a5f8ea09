"""Reading and writing by index: NumPy's rules for the part of them that the standard has, masks of any rank, and the errors."""

import numpy as np
import pytest

import ember_ml as em

A = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


@pytest.mark.parametrize("key", [
    (), (...,), (0,), (-1, ..., 2), (slice(None), None, 1), (slice(None, None, -1), ..., slice(3, 0, -2)), (None, ..., None),
    (slice(5, 1),), (0, 1, 2), (np.array([1, 0, 1], np.int32),), (slice(None), np.array([[0, 2], [1, 1]], np.int32)),
    (np.array([0, 1], np.int32), np.array([2, 0], np.int32)), (np.int64(1),), (A > 11,), (A[:, 0, 0] > 3, 1), (slice(None), A[0] > 5),
    (..., A[0, 0] > 1), (np.array([False, True]),), (A < -1,)], ids=lambda k: repr(k)[:40])
def test_reads_and_writes_as_numpy_does(backend, key):
    ours = tuple(em.tensor(k) if isinstance(k, np.ndarray) else k for k in key)
    x, changed, wanted = em.tensor(A), em.tensor(A), A.copy()
    assert np.array_equal(x[ours].numpy(), A[key]) and x[ours].shape == A[key].shape
    changed[ours] = -3
    wanted[key] = -3
    assert np.array_equal(changed.numpy(), wanted) and np.array_equal(x.numpy(), A)


def test_a_mask_takes_a_value_an_element(backend):
    x, wanted = em.tensor(A), A.copy()
    x[x > 20] = em.tensor([1.0, 2.0, 3.0])
    wanted[wanted > 20] = [1, 2, 3]
    assert np.array_equal(x.numpy(), wanted)


def test_scalars_are_written(backend):
    x = em.tensor(1.0)
    x[()] = 4
    assert x.item() == 4.0 and x.shape == ()


def test_gradients_pass_a_mask(backend):
    x = em.tensor([1.0, -2.0, 3.0])
    keep = x > 0
    assert em.grad(lambda x: (x[keep] ** 2).sum())(x).tolist() == [2.0, 0.0, 6.0]


@pytest.mark.parametrize("key, words", [((0, 0, 0, 0), "at most 3 indices"), ((2,), "2 is out of range for axis 0"), ((..., ...), "one ... at most"),
                                        ((em.tensor([True, False, True], device="numpy"),), "mask of shape \\(2,\\) at axis 0, got \\(3,\\)")])
def test_what_is_out_of_range(key, words):
    with pytest.raises(IndexError, match=words):
        em.tensor(A, device="numpy")[key]


def test_a_value_that_does_not_fit_is_not_cut_down(backend):
    x = em.tensor([1, 2])
    for value in (1.5, em.tensor([1.5, 2.5]), 1j):
        with pytest.raises(TypeError, match="values that int32 can hold"):
            x[0] = value
    assert x.tolist() == [1, 2]
