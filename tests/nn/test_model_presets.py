"""Families of models by name: forward against steps, files, heads for whole sequences, and their summaries."""

import pytest

import ember_ml as em
from ember_ml import nn
from ember_ml.errors import ShapeError
from ember_ml.registry import models
from tests.nn._help import close, get


def tokens():
    return em.random.randint(em.random.key(4), (2, 9), 0, 5)


FAMILIES = {
    "transformer": dict(heads=2), "lstm": {}, "mamba": dict(d_state=3), "hyena": dict(l_max=9, filter={"width": 8}),
    "fftconv": dict(l_max=9), "moe": dict(heads=2, num_experts=3, expert_config={"d_inner": 5}),
    "hybrid": dict(mixers=[{"layer": "gru"}, {"layer": "self_attention"}]), "hyena_dna": dict(l_max=9, filter={"width": 8}),
}


def family(name, **fields):
    return models.instantiate(name, vocab_size=5, d_input=6, n_layer=2, key=em.random.key(0), **FAMILIES[name], **fields)


def test_every_family_has_a_row():
    assert set(FAMILIES) <= set(models.names())


@pytest.mark.parametrize("name", FAMILIES)
def test_families_run_step_save_and_load(name, backend, tmp_path):
    made = family(name)
    whole, _ = made(tokens())
    got, states = made(tokens()[:, :4], made.initial_state(2))
    close(got, whole[:, :4], 1e-4)
    for t in range(4, 9):
        got, states = made.step(tokens()[:, t], states)
        close(got, whole[:, t], 1e-4)
    made.save(tmp_path / "m.safetensors")
    close(nn.Model.load(tmp_path / "m.safetensors")(tokens())[0], whole, 0.0)
    run = nn.value_and_grad(made, lambda m, x: m.loss(x[:, :-1], x[:, 1:]))
    _, grads = run(made.parameters(trainable=True), made.buffers(), em.random.key(0), tokens())
    assert [k for k, g in grads.items() if not get(g).any() and not k.endswith(("D", "balance"))] == []


@pytest.mark.parametrize("pool", ["mean", "last"])
def test_heads_for_whole_sequences(pool, backend):
    features = family("lstm", head="features", pool=pool)
    hidden = get(features.hidden(tokens())[0])
    pooled = hidden.mean(axis=1) if pool == "mean" else hidden[:, -1]
    close(features(tokens())[0], pooled, 1e-6)
    classifier = family("lstm", head="classifier", outputs=3, pool=pool)
    weight, bias = get(classifier.head.weight), get(classifier.head.bias)
    y, _ = classifier(tokens())
    close(y, pooled @ weight.T + bias, 1e-5)
    states = classifier.initial_state(2)
    for t in range(9):
        step, states = classifier.step(tokens()[:, t], states)
    close(step, y, 1e-5)
    labels = em.tensor([2, 0])
    close(classifier.loss(tokens(), labels), nn.losses.cross_entropy(y, labels), 1e-6)
    regressor = family("lstm", head="regressor", outputs=3, pool=pool)
    close(regressor(tokens())[0], y, 0.0)
    close(regressor.loss(tokens(), y + 2.0), 4.0, 1e-5)


def test_the_summary_counts_parameters_products_and_state():
    with em.using("numpy"):
        made = family("transformer", head="dense", d_inner=8)
    summary = made.summary(length=16)
    assert summary.total.parameters == made.count() and summary.total.bytes == 4 * made.count()
    rows = {row.name: row for row in summary.rows}
    assert list(rows) == ["embedding", "blocks.0", "blocks.1", "blocks.2", "blocks.3", "norm", "head"]
    assert rows["head"].flops == 2 * 6 * 5
    assert rows["blocks.1"].layer == "gated_mlp" and 2 * 3 * 6 * 8 <= rows["blocks.1"].flops < 2 * 3 * 6 * 8 + 15 * 8
    products = 2 * (6 * 18 + 6 * 6) + 2 * 2 * 16 * 6                         # projections, scores and sums over 16 positions
    assert products <= rows["blocks.0"].flops < products + 2 * 16 * 12 + 200
    assert 2 * 16 * 6 * 4 <= rows["blocks.0"].state_bytes <= 2 * 16 * 6 * 4 + 8
    assert "self_attention" in str(summary) and "total" in str(summary)
    tied = family("lstm").summary()
    assert tied.total.parameters == family("lstm").count() and tied.rows[1].state_bytes == 2 * 6 * 4


def test_the_summary_is_for_what_the_layers_take():
    with em.using("numpy"):
        made = nn.Model.from_config({"defaults": {"d_input": 4}, "blocks": [{"layer": "long_conv", "layer_config": {"l_max": 12}}, "gru"]})
    assert made.summary().length == 12 and made.summary(8).length == 8
    for wrong in (0, -1, 2.5):
        with pytest.raises(ShapeError, match=f"summary: expected a length of at least 1, received {wrong}"):
            made.summary(wrong)
