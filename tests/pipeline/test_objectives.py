"""The three tasks: their losses and scores against NumPy, and models that learn them, on every engine."""

import numpy as np
import pytest

import ember_ml as em
from ember_ml import nn
from ember_ml.errors import ConfigError, ShapeError
from ember_ml.nn import optimizers
from ember_ml.nn.pipeline.training import OBJECTIVES, Trainer, TrainingConfig
from ember_ml.nn.pipeline.training.supervised import model_fields

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(3, 4, 5)).astype(np.float32)


class Fixed(nn.Module):
    """Gives the same output whatever it is asked; the gate keeps it a model."""

    class config:
        vocab_size = 5

    def __init__(self, y):
        self.y = em.tensor(y)

    def forward(self, x):
        return self.y[:x.shape[0]], None


def test_next_token_is_judged_in_bits_over_all_targets_that_are_asked_for(backend):
    targets = np.array([[1, -100, 2, 4], [-100] * 4, [0, 3, 3, -100]], np.int32)
    task = OBJECTIVES["next_token"]
    wide = LOGITS.astype(np.float64)
    nats = np.log(np.exp(wide).sum(-1)) - np.take_along_axis(wide, np.maximum(targets, 0)[..., None], -1)[..., 0]
    asked = targets != -100
    x = np.zeros((3, 4), np.int32)
    assert task.count((x, targets)) == asked.sum() == 6
    assert task.loss(Fixed(LOGITS), em.tensor(x), em.tensor(targets)).item() == pytest.approx(nats[asked].mean(), rel=1e-6)
    batches = [(x[:1], targets[:1]), (x[:1], targets[1:2]), (x[:1], targets[:1])]
    assert task.evaluate(Fixed(LOGITS), batches) == {"bits": pytest.approx(nats[0][asked[0]].mean() / np.log(2), rel=1e-6)}
    with pytest.raises(ConfigError, match="at least one target"):
        task.evaluate(Fixed(LOGITS), batches[1:2])


def test_classes_are_judged_by_accuracy_and_numbers_by_their_error(backend):
    rows, x = LOGITS[:, 0], np.zeros((3, 4), np.int32)
    labels = np.array([rows[0].argmax(), rows[1].argmin(), rows[2].argmax()], np.int32)
    found = OBJECTIVES["classification"].evaluate(Fixed(rows), [(x[:2], labels[:2]), (x[:1], labels[:1])])
    wide = rows.astype(np.float64)
    nats = np.log(np.exp(wide).sum(-1)) - wide[np.arange(3), labels]
    assert list(found) == ["accuracy", "nats"] and OBJECTIVES["classification"].higher
    assert found["accuracy"] == pytest.approx(2 / 3) and found["nats"] == pytest.approx((2 * nats[0] + nats[1]) / 3, rel=1e-6)
    wanted = RNG.normal(size=(3, 5)).astype(np.float32)
    found = OBJECTIVES["regression"].evaluate(Fixed(rows), [(x, wanted)])
    assert found == {"mse": pytest.approx(((rows - wanted) ** 2).mean(), rel=1e-5), "mae": pytest.approx(np.abs(rows - wanted).mean(), rel=1e-5)}


@pytest.mark.parametrize("fields", [{"head": "tied"}, {"head": "dense", "head_bias": True, "logit_cap": 2.0}, {"head": "tied", "logit_scale": 0.5},
                                    {"head": "dense", "head_bias": True, "logit_scale": 0.5}])
def test_a_large_head_gives_the_same_without_all_its_logits(backend, monkeypatch, fields):
    m = nn.Model.from_config({"vocab_size": 9, "blocks": [{"d_input": 8, "layer": "min_gru"}], "norm": "rms_norm", **fields}, key=em.random.key(1))
    x, y = (em.tensor(RNG.integers(0, 9, (2, 6)).astype(np.int32)) for _ in range(2))
    y[0, :2] = -100
    segments = em.tensor(np.array([[1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 1, 1]], np.int32))
    both = nn.value_and_grad(m, OBJECTIVES["next_token"].loss)
    want, grads = both(m.parameters(), {}, em.random.key(0), x, y, segments)
    monkeypatch.setattr("ember_ml.nn.models.base.MANY_LOGITS", 9 * 12 - 1)
    if fields.get("head_bias") is None or "logit_scale" not in fields:
        monkeypatch.setattr(nn.Model, "_run", lambda *_: pytest.fail("all logits were made"))
    got, found = both(m.parameters(), {}, em.random.key(0), x, y, segments)
    assert got.loss.item() == pytest.approx(want.loss.item(), rel=1e-5)
    for name, g in grads.items():
        assert np.allclose(found[name].numpy(), g.numpy(), atol=1e-6), name


class Source:
    """Six sequences of three channels whose mean tells class and number."""

    task, channels, classes, outputs = "classification", 3, 2, 1
    x = RNG.normal(size=(6, 5, 3)).astype(np.float32) + np.arange(6).reshape(6, 1, 1).astype(np.float32) % 2 * 2


def test_models_of_channels_learn_classes_and_numbers(backend):
    labels = (np.arange(6) % 2).astype(np.int32)
    for task, targets, bound in (("classification", labels, 0.2), ("regression", labels[:, None].astype(np.float32), 0.1)):
        source = Source()
        source.task = task
        fields = model_fields(source, {"blocks": [{"d_input": 8, "layer": "mlp", "norm": "rms_norm"}]})
        assert fields["inputs"] == 3 and fields["outputs"] == (2 if task == "classification" else 1)
        model = nn.Model.from_config(fields, key=em.random.key(0))
        t = Trainer(model, OBJECTIVES[task].loss, optimizers.Adam(optimizers.AdamConfig(rate=0.05)), lambda i: (source.x, targets),
                    TrainingConfig(steps=40, log_every=40, compile=False), count=OBJECTIVES[task].count)
        last = t.train()
        assert last["loss"] < bound and last["tokens"] == 240
    with pytest.raises(ShapeError, match=r"inputs of shape \(batch, length, 3\)"):
        model(em.tensor(source.x[..., :2]))


def test_what_a_run_says_of_its_model_goes_before_what_the_data_say():
    assert model_fields(Source(), {"outputs": 7, "family": "x"}) == {"family": "x", "inputs": 3, "head": "classifier", "outputs": 7}
