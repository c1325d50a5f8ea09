"""Distributions on keyed bits: equal on every engine, and with the moments that their densities have."""

import math

import numpy as np
import pytest

import ember_ml as em
from ember_ml import random

N = 20000
KEY = 5

#: draw(key, shape), mean, variance
DRAWS = {
    "truncated_normal": (lambda k, n: random.truncated_normal(k, n, -1.0, 2.0), 0.2296, 0.5198),
    "exponential": (lambda k, n: random.exponential(k, n, 2.0), 0.5, 0.25),
    "gumbel": (random.gumbel, np.euler_gamma, math.pi ** 2 / 6),
    "laplace": (lambda k, n: random.laplace(k, n, 1.0, 0.5), 1.0, 0.5),
    "gamma": (lambda k, n: random.gamma(k, 2.5, n), 2.5, 2.5),
    "gamma below one": (lambda k, n: random.gamma(k, 0.3, n), 0.3, 0.3),
    "beta": (lambda k, n: random.beta(k, 2.0, 3.0, n), 0.4, 0.04),
    "poisson": (lambda k, n: random.poisson(k, 3.5, n), 3.5, 3.5),
    "poisson, many": (lambda k, n: random.poisson(k, 400.0, n), 400.0, 400.0),
}


@pytest.mark.parametrize("name", DRAWS)
def test_moments(name):
    """Mean and variance within five standard errors, these from the sample's own higher moments."""
    draw, mean, variance = DRAWS[name]
    with em.using("numpy"):
        x = draw(random.key(KEY), (N,)).numpy().astype(np.float64)
    assert np.isfinite(x).all()
    assert abs(x.mean() - mean) < 5 * x.std() / math.sqrt(N)
    squares = (x - mean) ** 2
    assert abs(squares.mean() - variance) < 5 * squares.std() / math.sqrt(N)


@pytest.mark.parametrize("name", DRAWS)
def test_equal_on_every_engine(backend, name):
    draw = DRAWS[name][0]
    got = draw(random.key(KEY), (1001,)).numpy()
    with em.using("numpy"):
        want = draw(random.key(KEY), (1001,)).numpy()
    if want.dtype.kind == "i":
        assert np.array_equal(got, want)
    else:
        np.testing.assert_allclose(got, want, rtol=3e-5, atol=1e-6)


def test_borders():
    with em.using("numpy"):
        k = random.key(1)
        z = random.truncated_normal(k, (N,), -0.5, 0.25, mean=10.0, std=2.0).numpy()
        assert z.min() >= 9.0 and z.max() <= 10.5
        assert random.exponential(k, (N,)).numpy().min() >= 0.0
        b = random.beta(k, 0.1, 0.1, (N,)).numpy()
        assert 0.0 <= b.min() and b.max() <= 1.0
        p = random.dirichlet(k, em.tensor([0.5, 2.0, 4.0]), (N,)).numpy()
        np.testing.assert_allclose(p.sum(-1), 1.0, atol=1e-6)
        np.testing.assert_allclose(p.mean(0), np.array([0.5, 2.0, 4.0]) / 6.5, atol=0.01)
        assert random.poisson(k, 0.0, (3,)).tolist() == [0, 0, 0]
        assert random.gamma(k, em.tensor([[1.0], [2.0]])).shape == (2, 1) and random.gamma(k, 2.0).shape == ()


def test_choice(backend):
    k = random.key(2)
    assert sorted(random.choice(k, 7, (7,), replace=False).tolist()) == list(range(7))
    p = em.tensor([0.1, 0.6, 0.3])
    drawn = np.bincount(random.choice(k, 3, (5000,), p=p).numpy(), minlength=3) / 5000
    np.testing.assert_allclose(drawn, p.numpy(), atol=0.03)
    assert sorted(random.choice(k, 3, (3,), replace=False, p=p).tolist()) == [0, 1, 2]
    firsts = [random.choice(random.key(i), 3, (2,), replace=False, p=p).tolist()[0] for i in range(60)]
    assert firsts.count(1) > firsts.count(0)
    assert set(random.choice(k, 4, (200,)).tolist()) == {0, 1, 2, 3}


def test_misuse():
    k = random.key(0)
    for call, fault in [(lambda: random.truncated_normal(k, (), 2.0, 1.0), "low < high"), (lambda: random.poisson(k, -1.0), "rate from 0"),
                        (lambda: random.truncated_normal(k, (), 6.0, 9.0), "low <= 4"), (lambda: random.choice(k, 3, (4,), replace=False), "at most 3"),
                        (lambda: random.choice(k, 3, (1,), p=em.ones((2,))), r"p of shape \(3,\)"), (lambda: random.gumbel(em.ones((2,))), "a key")]:
        with pytest.raises(ValueError, match=fault):
            call()
