"""Initial values: their statistics, and the same numbers on every engine for one key."""

import math

import numpy as np
import pytest

import ember_ml as em
from ember_ml.nn import initializers as init
from tests.conftest import ENGINES, require_engine

SHAPE = (160, 120, 3)                                        # out, in, taps: fan in 360, fan out 480
UNIFORM = {
    "uniform": (lambda key: init.uniform(key, SHAPE, 0.3), 0.3),
    "fan_in_uniform": (lambda key: init.fan_in_uniform(key, SHAPE), 1 / math.sqrt(360)),
    "fan_in_uniform, given": (lambda key: init.fan_in_uniform(key, SHAPE, 25), 0.2),
    "fan_in_uniform, vector": (lambda key: init.fan_in_uniform(key, (57600,)), 1 / 240),
    "glorot_uniform": (lambda key: init.glorot_uniform(key, SHAPE), math.sqrt(6 / 840)),
}
NORMAL = {
    "normal": (lambda key: init.normal(key, SHAPE, 0.02), 0.02),
    "he_normal": (lambda key: init.he_normal(key, SHAPE), math.sqrt(2 / 360)),
}
COUNT = math.prod(SHAPE)


def draw(make, engine="numpy", seed=5):
    require_engine(engine)
    with em.using(engine):
        return make(em.random.key(seed)).numpy()


@pytest.mark.parametrize("name", UNIFORM)
def test_uniform_statistics(name):
    make, bound = UNIFORM[name]
    x = draw(make).astype(np.float64).ravel()
    assert x.size == COUNT and x.min() >= -bound and x.max() < bound * (1 + 1e-6)
    assert x.min() < -0.999 * bound and x.max() > 0.999 * bound
    assert abs(x.mean()) < 5 * bound / math.sqrt(3 * COUNT)
    # the variance of x^2 is 4/45 bound^4
    assert abs((x * x).mean() - bound ** 2 / 3) < 5 * bound ** 2 * math.sqrt(4 / 45 / COUNT)


@pytest.mark.parametrize("name", NORMAL)
def test_normal_statistics(name):
    make, std = NORMAL[name]
    x = draw(make).astype(np.float64).ravel() / std
    assert abs(x.mean()) < 5 / math.sqrt(COUNT)
    assert abs((x * x).mean() - 1) < 5 * math.sqrt(2 / COUNT)
    assert abs((x ** 4).mean() - 3) < 5 * math.sqrt(96 / COUNT)
    # share within one standard deviation: erf(1 / sqrt 2)
    p = math.erf(math.sqrt(0.5))
    assert abs((np.abs(x) < 1).mean() - p) < 5 * math.sqrt(p * (1 - p) / COUNT)


@pytest.mark.parametrize("engine", [e for e in ENGINES if e != "numpy"])
@pytest.mark.parametrize("name", [*UNIFORM, *NORMAL])
def test_one_key_gives_one_result_on_every_engine(name, engine):
    make, scale = {**UNIFORM, **NORMAL}[name]
    want, got = draw(make), draw(make, engine)
    assert got.dtype == want.dtype == np.float32
    if name in UNIFORM:
        assert (got.view(np.uint32) == want.view(np.uint32)).all()
    else:                                                    # each engine has its own erfinv
        assert np.abs(got - want).max() <= 5e-6 * scale


def test_keys_matter(backend):
    first, again, other = (init.uniform(em.random.key(s), (64,), 1.0).tolist() for s in (1, 1, 2))
    assert first == again and not set(first) & set(other)


def test_models_are_equal_on_every_engine():
    from ember_ml import nn

    made = {}
    for engine in ENGINES:
        require_engine(engine)
        with em.using(engine):
            config = nn.HyenaDNAConfig(5, 8, 1, 16, filter={"width": 8})
            made[engine] = {k: t.numpy() for k, t in nn.HyenaDNA(config, key=em.random.key(0)).tensors().items()}
    for engine in ENGINES[1:]:
        assert list(made[engine]) == list(made["numpy"])
        for name, want in made["numpy"].items():
            assert np.abs(made[engine][name] - want).max() <= 2e-6, (engine, name)
