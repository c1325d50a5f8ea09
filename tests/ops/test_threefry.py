"""One key, one result: bits and uniforms equal to MLX's own generator on every engine, to the bit."""

import numpy as np
import pytest

import ember_ml as em

SIZES = [1, 2, 3, 8, 1000, 1001]


@pytest.mark.parametrize("n", SIZES)
def test_bits_are_equal_on_every_engine(backend, n):
    with em.using("numpy"):
        expected = em.random.bits(em.random.key(2 ** 40 + 17), (n,)).numpy()
    assert np.array_equal(em.random.bits(em.random.key(2 ** 40 + 17), (n,)).numpy(), expected)


@pytest.mark.parametrize("n", SIZES)
def test_equals_mlx(backend, n):
    mx = pytest.importorskip("mlx.core", reason="mlx is not installed")
    key = mx.random.key(12345)
    ours = em.random.key(12345)
    assert ours.tolist() == key.tolist()
    uniform = np.array(mx.random.uniform(key=key, shape=(n,)))
    assert np.array_equal(em.random.uniform(ours, (n,)).numpy(), uniform)
    split = np.array(mx.random.split(key, n))
    assert np.array_equal(np.stack([k.numpy() for k in em.random.split(ours, n)]), split)
    if n > 1:
        assert np.array_equal(em.random.bits(ours, (n, 2)).numpy(), split)
    normal = np.array(mx.random.normal(key=key, shape=(n,)))
    np.testing.assert_allclose(em.random.normal(ours, (n,)).numpy(), normal, atol=1e-6 * max(1.0, np.abs(normal).max()))


def test_derived_draws_are_equal_on_every_engine(backend):
    def draws():
        key = em.random.key(3)
        return [em.random.permutation(key, 101).numpy(), em.random.randint(key, (50,), -3, 9).numpy(),
                em.random.bernoulli(key, 0.3, (64,)).numpy(), em.random.fold_in(key, 7).numpy(),
                em.random.uniform(key, (33,), -2.0, 5.0).numpy(), em.random.fold_in(key, em.tensor(7)).numpy()]
    with em.using("numpy"):
        expected = draws()
    for got, want in zip(draws(), expected):
        assert np.array_equal(got, want)
    assert sorted(expected[0]) == list(range(101)) and np.array_equal(expected[3], expected[5])
    assert expected[1].min() >= -3 and expected[1].max() < 9


def test_distributions(backend):
    u = em.random.uniform(em.random.key(0), (20000,)).numpy()
    z = em.random.normal(em.random.key(1), (20000,)).numpy()
    assert 0.0 <= u.min() and u.max() < 1.0 and abs(u.mean() - 0.5) < 0.01 and abs(u.var() - 1 / 12) < 0.002
    assert abs(z.mean()) < 0.03 and abs(z.std() - 1.0) < 0.02 and np.isfinite(z).all()
    p = np.array([0.1, 0.2, 0.7])
    drawn = em.random.categorical(em.random.key(2), em.tensor(np.tile(np.log(p), (20000, 1)).astype(np.float32))).numpy()
    np.testing.assert_allclose(np.bincount(drawn) / 20000, p, atol=0.015)


def test_misuse(backend):
    with pytest.raises(em.ShapeError, match="expected a key.*em.random.key"):
        em.random.uniform(em.ones((2,)), (3,))
    with pytest.raises(ValueError, match="2\\*\\*64"):
        em.random.key(-1)
    with pytest.raises(ValueError, match="low < high"):
        em.random.randint(em.random.key(0), (1,), 3, 3)
