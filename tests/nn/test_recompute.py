"""Activation checkpointing per block: the same numbers, to the bit where the engine repeats itself, and less kept."""

import tracemalloc

import numpy as np
import pytest

import ember_ml as em
from ember_ml import nn
from tests.conftest import require_engine
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


def test_documents_stay_apart_when_their_rows_are_run_again(backend):
    blocks = [{"d_input": 8, "layer": name, "norm": "rms_norm", "layer_config": fields} for name, fields in (
        ("self_attention", {"heads": 2, "rope": {}}), ("min_gru", {}), ("mamba", {"d_state": 2}))]
    model = nn.Model.from_config({"vocab_size": 9, "blocks": blocks, "head": "tied"}, key=em.random.key(0))
    rng = np.random.default_rng(0)
    x, y = (em.tensor(rng.integers(0, 9, (2, 7)).astype(np.int32)) for _ in range(2))
    rows = em.tensor(np.array([[1, 1, 1, 2, 2, 0, 0], [1, 2, 2, 3, 3, 3, 3]], np.int32))
    found = []
    for segments, recompute in ((rows, False), (rows, True), (None, False)):
        out, grads = nn.value_and_grad(model, lambda m, *batch: m.loss(*batch), recompute=recompute)(
            model.parameters(), {}, em.random.key(0), x, y, segments)
        found.append({"loss": out.loss, "grads": grads})
    same_trees(found[1], found[0], 1e-6)
    assert abs(found[2]["loss"].item() - found[0]["loss"].item()) > 1e-4       # the documents do matter


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


@pytest.mark.parametrize("engine", ["numpy", "mlx"])
def test_the_insides_of_further_blocks_are_not_kept(engine):
    """Peak bytes that eight more blocks add to a gradient: their insides, or their inputs, an eighth of one array inside."""
    require_engine(engine)
    tokens = np.random.default_rng(0).integers(0, 8, (4, 128)).astype(np.int32)

    def peak(blocks, recompute):
        wide = {"d_input": 16, "layer": "gated_mlp", "layer_config": {"d_inner": 128}, "norm": "rms_norm"}
        model = nn.Model.from_config({"vocab_size": 8, "blocks": [wide] * blocks, "head": "tied"}, key=em.random.key(0))
        both, x = nn.value_and_grad(model, lambda m, t: nn.losses.cross_entropy(m(t)[0], t), recompute=recompute), em.tensor(tokens)

        def run():
            return both(model.parameters(), {}, em.random.key(0), x)[1]["embedding.weight"].numpy()

        run()
        if engine == "mlx":
            mx = pytest.importorskip("mlx.core")

            def once():
                mx.reset_peak_memory()
                before = mx.get_active_memory()
                run()
                return mx.get_peak_memory() - before
            return min(once() for _ in range(3))            # MLX allocates ahead of the thread that computes, sometimes far
        tracemalloc.start()
        try:
            run()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    inside = 4 * 128 * 128 * 4                              # bytes of one array inside a block: (B, L, d_inner) of float32
    with em.using(engine):
        plain, saved = (peak(12, recompute) - peak(4, recompute) for recompute in (False, True))
    assert plain > 8 * 3 * inside and saved < 8 * 0.5 * inside, (plain / inside, saved / inside)
