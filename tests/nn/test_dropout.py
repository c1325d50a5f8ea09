"""Dropout: off in evaluation, from the scope's key in training, and the same mask on every engine."""

import math

import numpy as np
import pytest

import ember_ml as em
from ember_ml import nn
from ember_ml.errors import ConfigError
from ember_ml.nn.layers import dropout
from ember_ml.registry import layers
from tests.conftest import ENGINES, require_engine
from tests.nn._help import get, numbers, put


def drop(engine, p=0.3, key=7, shape=(40, 50), calls=1):
    require_engine(engine)
    with em.using(engine), nn.training(em.random.key(key)):
        return [dropout(put(numbers(0, *shape)), p).numpy() for _ in range(calls)]


def test_evaluation_changes_nothing(backend):
    x = put(numbers(0, 4, 5))
    assert dropout(x, 0.5) is x and layers.instantiate("dropout", 5)(x) is x


@pytest.mark.parametrize("engine", ENGINES[1:])
def test_one_key_gives_one_mask_on_every_engine(engine):
    for want, got in zip(drop("numpy", calls=2), drop(engine, calls=2)):
        assert (got.view(np.uint32) == want.view(np.uint32)).all()


@pytest.mark.parametrize("p", [0.05, 0.3, 0.9])
def test_share_and_scale(p, backend):
    x, (y,) = numbers(0, 40, 50), drop(backend, p)
    kept = y != 0
    np.testing.assert_allclose(y[kept], (x / (1 - p))[kept], rtol=1e-6)
    assert abs(kept.mean() - (1 - p)) < 5 * math.sqrt(p * (1 - p) / x.size)


def test_calls_and_keys_draw_anew(backend):
    (a, b), (c,) = drop(backend, calls=2), drop(backend, key=8)
    assert (a == drop(backend)[0]).all()
    for other in (b, c):
        assert 0.3 < ((a == 0) != (other == 0)).mean() < 0.54           # 2 * 0.3 * 0.7 = 0.42


def test_the_gradient_has_the_mask(backend):
    layer = layers.instantiate("dropout", 50, p=0.4)
    x = put(numbers(0, 40, 50))

    def loss(x):
        with nn.training(em.random.key(1)):
            return layer(x).sum()

    with nn.training(em.random.key(1)):
        kept = layer(x).numpy() != 0
    np.testing.assert_allclose(get(em.grad(loss)(x)), kept / 0.6, rtol=1e-6)


@pytest.mark.parametrize("p, rule", [(1.0, "below 1"), (-0.1, "of at least 0")])
def test_p_is_a_probability_that_leaves_something(p, rule):
    with pytest.raises(ConfigError, match=f"layer 'dropout': DropoutConfig: p: expected a number {rule}\\.0; received {p}"):
        layers.instantiate("dropout", 5, p=p)
    with pytest.raises(ConfigError, match=f"BlockConfig: dropout: expected a number {rule}"):
        nn.BlockConfig(5, "mlp", dropout=p)
