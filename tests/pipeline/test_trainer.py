"""The trainer in one process: it learns, logs, saves, refuses."""

import numpy as np
import pytest

import ember_ml as em
from ember_ml import nn
from ember_ml.errors import ConfigError, WeightsError
from ember_ml.nn import optimizers
from ember_ml.nn.pipeline import Pipeline
from ember_ml.nn.pipeline.training import Callback, Rows, RunConfig, RunFolder, Trainer, TrainingConfig
from ember_ml.nn.pipeline.training import config as configs
from ember_ml.registry import from_dict

PATTERN = np.tile(np.array([0, 1, 2, 1], np.int32), 9)[None]


def model():
    return nn.HyenaDNA(nn.HyenaDNAConfig(vocab_size=4, d_input=8, n_layer=1, l_max=32, filter={"width": 8}), key=em.random.key(0))


def trainer(steps, batch=lambda i: (PATTERN[:, :32], PATTERN[:, 1:33]), **more):
    return Trainer(model(), lambda m, x, y: nn.losses.cross_entropy(m(x)[0], y),
                   optimizers.AdamW(optimizers.AdamWConfig(rate=2e-2)), batch,
                   TrainingConfig(steps=steps, log_every=5, eval_every=10, checkpoint_every=10), **more)


def test_learns_and_leaves_the_weights_in_the_model(backend):
    t = trainer(40)
    before = {k: v.numpy() for k, v in t.model.parameters().items()}
    heard = Rows()
    t.callbacks.append(heard)
    last, seen = t.train(), heard.rows
    assert seen[0]["loss"] > 1.0 > 0.1 > last["loss"]
    assert [r["step"] for r in seen] == list(range(5, 41, 5))
    assert set(last) >= {"tokens", "tokens_per_second", "memory", "rate", "grad_norm", "seconds"}
    assert any(np.abs(v.numpy() - before[k]).max() > 1e-3 for k, v in t.model.parameters().items())


def test_compiled_equals_eager_on_mlx():
    pytest.importorskip("mlx.core", reason="mlx is not installed")
    with em.using("mlx"):
        eager, compiled = trainer(6), trainer(6)
        eager.config = compiled.config = TrainingConfig(steps=6, log_every=1)
        eager = Trainer(eager.model, lambda m, x, y: nn.losses.cross_entropy(m(x)[0], y), eager.optimizer, eager.batch,
                        TrainingConfig(steps=6, log_every=1, compile=False))
        assert compiled.train()["loss"] == pytest.approx(eager.train()["loss"], rel=1e-4)


def test_a_loss_that_is_not_finite_stops_with_its_update(backend):
    t = Trainer(model(), lambda m, x, y: nn.losses.cross_entropy(m(x)[0], y) * float("nan"),
                optimizers.SGD(optimizers.SGDConfig()), lambda i: (PATTERN[:, :32], PATTERN[:, 1:33]),
                TrainingConfig(steps=3, log_every=1))
    with pytest.raises(FloatingPointError, match="loss of update 1 is nan"):
        t.train()


def test_frozen_parameters_stay(backend):
    t = trainer(2)
    t.model.freeze("embedding.*")
    t = Trainer(t.model, lambda m, x, y: nn.losses.cross_entropy(m(x)[0], y), t.optimizer, t.batch, TrainingConfig(steps=2))
    before = t.model.embedding.weight.numpy()
    t.train()
    assert np.array_equal(t.model.embedding.weight.numpy(), before)


def test_folder_refuses_a_second_run_and_resumes(tmp_path):
    with em.using("numpy"):
        folder = RunFolder(tmp_path / "run")
        folder.config.write_text("")
        trainer(10, folder=folder).train()
        with pytest.raises(ConfigError, match="--resume.*--overwrite"):
            RunFolder(tmp_path / "run")
        with pytest.raises(ConfigError, match="no run to resume"):
            RunFolder(tmp_path / "other", resume=True)
        again = trainer(20, folder=RunFolder(tmp_path / "run", resume=True))
        again.resume()
        assert again.progress.step == 10 and again.progress.tokens == 320
        again.train()
        assert [r["step"] for r in again.folder.rows()] == [5, 10, 15, 20]


def test_resume_refuses_another_model_and_changes_nothing(tmp_path):
    with em.using("numpy"):
        trainer(10, folder=RunFolder(tmp_path / "run")).train()
        other = Trainer(nn.HyenaDNA(nn.HyenaDNAConfig(vocab_size=4, d_input=4, n_layer=1, l_max=32), key=em.random.key(0)),
                        lambda m, x, y: None, optimizers.SGD(optimizers.SGDConfig()), lambda i: (PATTERN,), TrainingConfig(steps=1),
                        folder=RunFolder(tmp_path / "run", resume=True))
        before = other.state
        with pytest.raises(WeightsError, match="embedding.weight"):
            other.resume()
        assert other.state is before and other.progress.step == 0


def test_a_row_cut_short_by_a_crash_is_left_out(tmp_path):
    folder = RunFolder(tmp_path)
    folder.log({"step": 1, "loss": 2.0})
    with folder.metrics.open("a") as f:
        f.write('{"step": 2, "lo')
    assert folder.rows() == [{"step": 1, "loss": 2.0}]
    folder.rewind(1)
    folder.log({"step": 2, "loss": 1.0})
    assert [r["step"] for r in folder.rows()] == [1, 2]


def test_config_files(tmp_path):
    run = from_dict(RunConfig, {"data": {"kind": "dna", "length": 8, "batch": 1}, "model": {"family": "model", "blocks": [
        {"d_input": 8, "layer": "hyena", "layer_config": {"l_max": 8, "filter": {"width": 4}}}]},
        "optimizer": {"name": "sgd", "rate": {"peak": 0.1, "total": 5}}, "training": {"steps": 5}, "seed": 9})
    configs.write(tmp_path / "c.toml", run)
    assert configs.read(tmp_path / "c.toml") == run
    for text, words in (("steps = = 1", "is no TOML"), ("[training]\nsteps = 1\nclipp = 2\n", "clip"), ("", "needs 'data'")):
        (tmp_path / "bad.toml").write_text(text)
        with pytest.raises(ConfigError, match=words):
            configs.read(tmp_path / "bad.toml")
    with pytest.raises(ConfigError, match="no such file"):
        configs.read(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="adam.*received 'adamm'"):
        configs.build_optimizer({"name": "adamm"})


@pytest.mark.parametrize("ending", ["toml", "json"])
def test_no_clipping_is_written_and_read(tmp_path, ending):
    """None is no value of a TOML file, and what is left out would be the default, 1.0."""
    run = from_dict(RunConfig, {"data": {"kind": "dna"}, "model": {}, "optimizer": {"name": "sgd"}, "training": {"steps": 5, "clip": None}})
    assert run.training == TrainingConfig(steps=5, clip=float("inf"))
    file = tmp_path / f"c.{ending}"
    configs.write(file, run)
    assert configs.read(file) == run
    (tmp_path / "null.json").write_text(file.read_text().replace("Infinity", "null") if ending == "json" else '{"data": {}, "model": {}, '
                                        '"optimizer": {}, "training": {"steps": 5, "clip": null}}')
    assert configs.read(tmp_path / "null.json").training == run.training


def test_pipeline_runs_its_stages_in_order():
    assert Pipeline({"any": 1}).add_stage(lambda x: x + 1).add_stage(lambda x: x * 10).run(1) == 20
    with pytest.raises(TypeError, match="function of one argument, got int"):
        Pipeline().add_stage(3)


def test_generation(backend):
    m = model()
    prompt = em.tensor(PATTERN[:, :5])
    greedy = [t.item() for t in nn.pipeline.generate(m, prompt, 6)]
    tokens = PATTERN[:, :5]
    for token in greedy:                                     # the definition: run the whole prefix again each time
        assert token == m(em.tensor(tokens))[0].numpy()[0, -1].argmax()
        tokens = np.concatenate([tokens, [[token]]], axis=1).astype(np.int32)
    drawn = [[t.item() for t in nn.pipeline.generate(m, prompt, 20, em.random.key(s), allowed=2)] for s in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2] and set(drawn[0]) <= {0, 1}
    with pytest.raises(ValueError, match="temperature of at least 0"):
        next(nn.pipeline.generate(m, prompt, 1, em.random.key(0), temperature=-1.0))
    with pytest.raises(em.ShapeError, match="length >= 1"):
        next(nn.pipeline.generate(m, prompt[:, :0], 1))
