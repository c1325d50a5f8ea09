"""MAD on a laptop: models of any layers learn the tasks; their accuracy is that of unseen sequences."""

import pytest

import ember_ml as em
from ember_ml.data.synthetic import TASKS
from ember_ml.errors import ConfigError, RegistryError
from ember_ml.nn.pipeline.training import probes
from ember_ml.nn.pipeline.training.probes import ProbeConfig, accuracy, build, probe, train
from tests.conftest import require_engine

TINY = dict(d_input=16, depth=1, steps=2, batch=4, train=8, test=8)


@pytest.mark.parametrize("engine", ["numpy", "torch"])      # MLX compiles its steps, on a CPU for half a minute
def test_training_raises_the_accuracy_and_judges_unseen_sequences(engine):
    require_engine(engine)
    with em.using(engine):
        learn()


def learn():
    task = TASKS["memorization"](vocab_size=8, seq_len=8)
    c = ProbeConfig(["min_gru"], d_input=16, depth=1, steps=60, batch=16, train=64, test=32, rate=1e-2)
    model = build("min_gru", task, 8, c)
    before = accuracy(model, task, c)
    train(model, task, c)
    assert before < 0.7 and accuracy(model, task, c) > 0.95       # three keys and values: every one was seen


def test_accuracy_counts_judged_targets_alone():
    class Always(em.nn.Module):
        def forward(self, tokens):
            return em.ops.one_hot(tokens * 0 + 9, 16), None

    task, c = TASKS["selective_copying"](seq_len=30, num_tokens_to_copy=6), ProbeConfig(["mlp"], test=100)
    _, targets = task.instances(100, c.seed + 1, training=False)
    assert accuracy(Always(), task, c) == pytest.approx((targets == 9).sum() / 600)


def test_every_task_and_any_layer_by_name(monkeypatch):
    monkeypatch.setattr(probes, "SIZES", {name: dict(fields, seq_len=16) for name, fields in probes.SIZES.items()} | {
        "selective_copying": dict(vocab_size=8, seq_len=16, num_tokens_to_copy=3)})
    with em.using("numpy"):
        rows = probe(ProbeConfig(["mamba+mlp", "self_attention"], **TINY))
        for name in ("hyena", "long_conv", "linear_attention", "gated_linear_attention", "lstm", "cfc", "rwkv4", "rwkv6", "mamba2", "rg_lru",
                     "mlstm", "slstm", "gated_delta_net", "gated_short_conv"):
            assert build(name, TASKS["compression"](seq_len=16), 16, ProbeConfig([name])).count() > 0
    assert len(rows) == 12 and {r["task"] for r in rows} == set(TASKS)
    assert all(0.0 <= r["accuracy"] <= 1.0 and r["parameters"] > 0 for r in rows)


@pytest.mark.parametrize("fields, error, message", [
    (dict(layers=["hyenna"]), RegistryError, "did you mean hyena"), (dict(layers=["residual"]), ConfigError, "channel or sequence mixers"),
    (dict(layers=["mlp"], tasks=["recall"]), ConfigError, "tasks"), (dict(layers=["mlp"], train=8, batch=9), ConfigError, "at least one batch")])
def test_misuse_is_told_before_anything_is_trained(fields, error, message):
    with pytest.raises(error, match=message):
        probe(ProbeConfig(**fields), watch=lambda row: pytest.fail("trained"))
