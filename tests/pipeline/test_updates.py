"""What an update is made of: accumulated batches, moving average, bfloat16 with float32 state; and when training ends."""

import numpy as np
import pytest

import ember_ml as em
from ember_ml import nn
from ember_ml.errors import ConfigError
from ember_ml.nn import optimizers
from ember_ml.nn.pipeline.training import OBJECTIVES, RunFolder, Trainer, TrainingConfig, initial_state, make_step
from ember_ml.nn.pipeline.training.accumulation import make_accumulating_step
from ember_ml.nn.pipeline.training.step import updated
from tests.conftest import require_engine

TASK = OBJECTIVES["next_token"]
LENGTHS = (3, 12, 1, 7)                                     # tokens asked for in the parts: as uneven as can be


def model(**more):
    blocks = [{"d_input": 8, "layer": "self_attention", "norm": "rms_norm", "layer_config": {"heads": 2}}, {"d_input": 8, "layer": "gated_mlp", "norm": "rms_norm"}]
    return nn.Model.from_config({"vocab_size": 11, "blocks": blocks, "norm": "rms_norm", "head": "tied", **more}, key=em.random.key(0))


def parts():
    """Batches of different lengths, of which different numbers of targets are asked for."""
    rng = np.random.default_rng(5)
    made = []
    for n in LENGTHS:
        x, y = (rng.integers(0, 11, (2, n + 1)).astype(np.int32) for _ in range(2))
        y[0, n:] = -100
        y[1, : n // 2] = -100
        made.append((x, y))
    return made


def whole(batches):
    """The same as one batch, padded to the longest."""
    width = max(x.shape[1] for x, _ in batches)
    pad = [(np.pad(x, ((0, 0), (0, width - x.shape[1]))), np.pad(y, ((0, 0), (0, width - y.shape[1])), constant_values=-100))
           for x, y in batches]
    return tuple(np.concatenate(rows) for rows in zip(*pad))


class Keep(optimizers.SGD):
    """An optimiser that keeps the gradient as its state."""

    def slots(self, params):
        return {"g": {k: p.zeros_like() for k, p in params.items()}}

    def update(self, params, grads, state):
        return params, {"step": state["step"] + 1, "g": grads}


@pytest.mark.parametrize("engine, dtype, compiled, bound", [
    ("numpy", "float64", False, 1e-12), ("torch", "float64", False, 1e-12), ("numpy", "float32", False, 1e-6), ("torch", "float32", False, 1e-6),
    ("mlx", "float32", False, 1e-6), pytest.param("mlx", "float32", True, 1e-6, marks=pytest.mark.slow)])
def test_accumulated_gradients_are_those_of_the_big_batch(engine, dtype, compiled, bound):
    require_engine(engine)
    with em.using(engine):
        m, keep, batches = model().astype(dtype), Keep(optimizers.SGDConfig()), parts()
        counts = [TASK.count(b) for b in batches]
        assert len(set(counts)) == 4 and sum(counts) == TASK.count(whole(batches))
        state = initial_state(m, keep, em.random.key(0))
        put = lambda arrays: tuple(em.tensor(a) for a in arrays)                                                  # noqa: E731
        one, metrics = make_step(m, TASK.loss, keep)(state, put(whole(batches)))
        many, found = make_accumulating_step(m, TASK.loss, keep, compile=compiled)(state, map(put, batches), counts)
        mean, _ = make_accumulating_step(m, TASK.loss, keep)(state, map(put, batches), [1] * 4)

    def norm(tree):
        return np.sqrt(sum((np.asarray(g, np.float64) ** 2).sum() for g in tree.values()))

    want, got, naive = ({k: g.numpy() for k, g in s["optimizer"]["g"].items()} for s in (one, many, mean))
    error = norm({k: got[k] - want[k] for k in want}) / norm(want)
    assert error < bound, error
    assert norm({k: naive[k] - want[k] for k in want}) / norm(want) > 0.05       # the mean of means, which this is not
    assert found["loss"].item() == pytest.approx(metrics["loss"].item(), rel=1e-5)


def test_the_trainer_accumulates_batch_after_batch(backend):
    batches = parts()

    def make(accumulate, batch, steps):                      # prefetching changes nothing
        return Trainer(model(), TASK.loss, optimizers.SGD(optimizers.SGDConfig(rate=0.1)), batch, TrainingConfig(
            steps=steps, accumulate=accumulate, log_every=1, compile=False, prefetch=accumulate - 1), count=TASK.count)

    one, many = make(1, lambda i: whole(batches[2 * i:2 * i + 2]), 2), make(2, lambda i: batches[i % 4], 2)
    a, b = one.train(), many.train()
    assert a["tokens"] == b["tokens"] == sum(TASK.count(x) for x in batches)
    assert b["loss"] == pytest.approx(a["loss"], rel=1e-5) and b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-4)
    for name, p in one.model.parameters().items():
        assert np.allclose(many.model.parameters()[name].numpy(), p.numpy(), atol=1e-6), name


def test_the_moving_average_is_what_is_judged_and_kept(backend):
    class Two(nn.Module):
        def __init__(self):
            self.w = em.tensor(np.array([1.0, -2.0], np.float32))

    seen = []
    t = Trainer(Two(), lambda m, x: (m.w * x).sum(), optimizers.SGD(optimizers.SGDConfig(rate=0.5)), lambda i: (np.array([i + 1.0, 1.0], np.float32),),
                TrainingConfig(steps=30, ema=0.6, clip=None, eval_every=10, compile=False), evaluate=lambda m: seen.append(m.w.numpy()) or {"x": 0.0})
    t.train()
    w = average = np.array([1.0, -2.0])
    means = []
    for i in range(30):
        w = w - 0.5 * np.array([i + 1.0, 1.0])
        d = min(0.6, (1 + i) / (10 + i))
        average = d * average + (1 - d) * w
        means.append(average)
    assert np.allclose(seen, means[9::10], rtol=1e-5) and np.allclose(t.model.w.numpy(), average, rtol=1e-5)
    assert np.allclose(t.state["params"]["w"].numpy(), w, rtol=1e-5)


@pytest.mark.parametrize("layer", [("self_attention", {"heads": 2}), ("hyena", {"l_max": 8, "filter": {"width": 8}}), ("mamba", {})])
def test_bfloat16_computes_low_and_keeps_high(backend, layer):
    seen = set()

    def loss(m, x, y):
        h, _ = m.hidden(x)
        seen.add(str(h.dtype))
        return nn.losses.cross_entropy(m.embedding.as_head(h), y)

    m = model(blocks=[{"d_input": 8, "layer": layer[0], "layer_config": layer[1], "norm": "rms_norm"}, {"d_input": 8, "layer": "gated_mlp", "norm": "rms_norm"}])
    rng = np.random.default_rng(0)
    x, y = (em.tensor(rng.integers(0, 11, (4, 8)).astype(np.int32)) for _ in range(2))
    keep = Keep(optimizers.SGDConfig())
    state = initial_state(m, keep, em.random.key(0))
    full, metrics = make_step(m, loss, keep)(state, (x, y))
    assert seen == {"float32"}
    low, found = make_step(m, loss, keep, precision="bfloat16")(state, (x, y))
    assert seen == {"float32", "bfloat16"}
    assert {str(t.dtype) for t in em.tree.tensors((low["params"], low["optimizer"]["g"]))} == {"float32"}
    assert 0.0 < abs(found["loss"].item() - metrics["loss"].item()) < 0.02 and found["loss"].dtype is em.tensor(0.0).dtype
    a, b = (np.concatenate([g.numpy().ravel() for g in s["optimizer"]["g"].values()]) for s in (full, low))
    assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.98


def test_bfloat16_learns_what_float32_steps_are_too_small_for():
    """0.999 of a weight is itself in bfloat16: only float32 parameters add up a thousand small steps."""
    class One(nn.Module):
        def __init__(self):
            self.w = em.tensor(np.ones(1, np.float32))

    with em.using("numpy"):
        t = Trainer(One(), lambda m, x: (m.w * x).sum(), optimizers.SGD(optimizers.SGDConfig(rate=1e-3)), lambda i: (np.ones(1, np.float32),),
                    TrainingConfig(steps=100, precision="bfloat16", clip=None))
        t.train()
    assert t.model.w.item() == pytest.approx(0.9, abs=1e-4)


def judged(scores, folder=None, **fields):
    """A run whose weight falls by one an update and whose evaluations give `scores`."""
    class One(nn.Module):
        def __init__(self):
            self.w = em.tensor(np.zeros(1, np.float32))

    given = iter(scores)
    return Trainer(One(), lambda m, x: (m.w * x).sum(), optimizers.SGD(optimizers.SGDConfig(rate=1.0)), lambda i: (np.ones(1, np.float32),),
                   TrainingConfig(eval_every=1, clip=None, **fields), evaluate=lambda m: {"score": next(given)}, folder=folder)


@pytest.mark.parametrize("inside", [True, False])
def test_early_stopping_and_the_best_weights(tmp_path, inside):
    nan = float("nan")
    scores = [5.0, 3.0, nan, 3.0, 9.0, 1.0]
    with em.using("numpy"):
        def run(**fields):
            t = judged(scores, RunFolder(tmp_path / "run", overwrite=True) if inside else None, steps=6, **fields)
            t.train()
            return t.progress.step, -t.model.w.item()

        assert run() == (6, 6.0)
        assert run(patience=3) == (5, 5.0)                  # the third evaluation after the second was no better: a tie or NaN is not
        assert run(patience=3, final="best") == (5, 2.0)
        assert run(patience=4, final="best") == (6, 6.0)
        if inside:
            done = judged([], RunFolder(tmp_path / "run", resume=True), steps=9, patience=1)
            done.resume()
            assert not done.done and done.progress.waited == 0


def test_epochs_are_turned_into_updates():
    assert TrainingConfig(epochs=2.5).in_steps(100).steps == 250
    assert TrainingConfig(epochs=1, accumulate=4).in_steps(100).steps == 25
    assert TrainingConfig(epochs=0.001).in_steps(100).steps == 1 and TrainingConfig(steps=7).in_steps(100).steps == 7
    for fields in ({}, {"steps": 3, "epochs": 1}):
        with pytest.raises(ConfigError, match="either steps or epochs"):
            TrainingConfig(**fields)
    for fields in ({"steps": 0}, {"epochs": -1}, {"steps": 1, "ema": 1.0}, {"steps": 1, "precision": "float16"}, {"steps": 1, "accumulate": 0}):
        with pytest.raises(ConfigError):
            TrainingConfig(**fields)
    with em.using("numpy"), pytest.raises(ConfigError, match="in_steps"):
        judged([], epochs=1)


def test_the_clipped_norm_is_the_limit(backend):
    m, keep = model(), Keep(optimizers.SGDConfig())
    state = initial_state(m, keep, em.random.key(0))
    grads = {k: p * 0.0 + 3.0 for k, p in m.parameters().items()}
    after, metrics = updated(state, grads, {}, {}, keep, 0.5, None)
    norm = np.sqrt(sum((np.asarray(g.numpy(), np.float64) ** 2).sum() for g in after["optimizer"]["g"].values()))
    assert norm == pytest.approx(0.5, rel=1e-5) and metrics["grad_norm"].item() == pytest.approx(3 * np.sqrt(m.count()), rel=1e-5)
