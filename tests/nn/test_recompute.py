"""Activation checkpointing per block: the same numbers, to the bit where the engine repeats itself, and less kept."""

import numpy as np
import pytest

import ember_ml as em
from ember_ml import nn
from tests.nn import _tiny
from tests.nn._help import same_trees


def run(recompute, mode="auto"):
    model = _tiny.model()
    pure = nn.gradient.loss_function(model, lambda m, t: counted(m, t), recompute=recompute)
    both = em.value_and_grad(pure, has_aux=True, mode=mode)
    (total, (metrics, buffers)), grads = both(model.parameters(), model.buffers(), em.random.key(3), *_tiny.batch(0))
    return {"loss": total, "metrics": metrics, "buffers": buffers, "grads": grads}


def counted(model, tokens):
    with nn.moe.token_classes(tokens[:, :-1], _tiny.VOCAB):
        return _tiny.loss(model, tokens)


def test_dropout_experts_and_hyena_give_what_they_give_without(backend):
    plain, saved = run(False), run(True)
    assert set(saved["metrics"]) == set(plain["metrics"]) and f"{_tiny.ROUTER}.classes" in saved["metrics"]
    same_trees(saved, plain, 1e-6)
    assert saved["buffers"][_tiny.BIAS].tolist() == plain["buffers"][_tiny.BIAS].tolist()
    assert any(np.abs(g.numpy()).max() > 1e-3 for g in saved["grads"].values())


def test_inside_a_compiled_step():
    pytest.importorskip("mlx.core", reason="mlx is not installed")
    from ember_ml.nn.pipeline.training import initial_state, make_step
    with em.using("mlx"):
        found = []
        for recompute in (False, True):
            model = _tiny.model()
            step = make_step(model, counted, _tiny.optimizer(), clip=1.0, compile=True, recompute=recompute)
            state = initial_state(model, _tiny.optimizer(), em.random.key(5))
            for i in range(2):
                state, metrics = step(state, _tiny.batch(i))
            found.append({"state": state, "metrics": metrics})
        same_trees(found[1], found[0], 1e-4)


def test_evaluation_is_untouched(backend):
    model, x = _tiny.model(), _tiny.batch(0)[0][:, :4]
    before = model(x)[0].tolist()
    with nn.training(em.random.key(0), recompute=True):
        _, states = model(x)
        _, stepped = model.step(x[:, 0], model.initial_state(_tiny.BATCH))
    assert model(x)[0].tolist() == before and states == [None, None] and stepped[0] is not None
