"""Models: from plain dicts and TOML, forward against steps, heads; HyenaDNA."""

import tomllib

import pytest

import ember_ml as em
from ember_ml import nn
from ember_ml.errors import ConfigError, ShapeError
from ember_ml.registry import models, to_dict
from tests.nn._help import close, get, numbers, put, same_trees

TOML = """
vocab_size = 5
norm = "rms_norm"
head = "dense"

[[blocks]]
d_input = 6
layer = "hyena"
norm = "layer_norm"
hyena_config = {l_max = 9, order = 3, filter = {width = 8}}

[[blocks]]
d_input = 6
layer = "moe"
residual = "affine_residual"
residual_config = {depth = 2}
layer_config = {num_experts = 3, d_inner = 4}
"""
DNA = dict(vocab_size=5, d_input=6, n_layer=2, l_max=9, d_inner=7, filter={"width": 8})


def tokens(batch=2, length=9):
    return em.random.randint(em.random.key(4), (batch, length), 0, 5)


def from_toml():
    return nn.Model.from_config(tomllib.loads(TOML), key=em.random.key(0))


def dna(**fields):
    return models.instantiate("hyena_dna", key=em.random.key(0), **{**DNA, **fields})


def test_from_toml(backend):
    model = from_toml()
    assert [type(b.layer).__name__ for b in model.blocks] == ["Hyena", "SparseMoE"]
    assert model.blocks[0].layer.config.order == 3 and model.blocks[1].residual.config.depth == 2
    y, states = model(tokens())
    assert y.shape == (2, 9, 5) and states == [None, None]


def test_the_config_goes_through_plain_values_and_back():
    import json

    config = nn.Model.Config(**tomllib.loads(TOML))
    assert nn.ModelConfig(**json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize("make", [from_toml, dna], ids=["toml", "hyena_dna"])
def test_forward_is_prefill_and_steps(make, backend):
    model, x = make(), tokens()
    whole, _ = model(x)
    first, states = model(x[:, :4], model.initial_state(2))
    close(first, whole[:, :4], 1e-4)
    for t in range(4, 9):
        y, states = model.step(x[:, t], states)
        close(y, whole[:, t], 1e-4)


def test_hyena_dna_is_pairs_of_hyena_and_mlp(backend):
    model = dna()
    assert [b.config.layer for b in model.blocks] == ["hyena", "mlp"] * 2
    x = tokens()
    h = model.embedding(x)
    for b in model.blocks:
        y = b.layer(b.norm(h))
        h = h + (y[0] if b.layer.mixes_sequence else y)
    hidden, _ = model.hidden(x)
    close(hidden, model.norm(h), 1e-6)
    close(model(x)[0], get(hidden) @ get(model.embedding.weight).T, 1e-5)
    assert "head.weight" not in model.parameters()


def test_the_embedding_has_a_multiple_of_rows(backend):
    model = dna(vocab_multiple=8)
    assert model.embedding.weight.shape == (8, 6) and model(tokens())[0].shape == (2, 9, 8)


def test_every_parameter_has_a_gradient(backend):
    model = dna(dropout=0.1)
    run = nn.value_and_grad(model, lambda m, x: nn.losses.cross_entropy(m(x[:, :-1])[0], x[:, 1:]))
    _, grads = run(model.parameters(), model.buffers(), em.random.key(0), tokens())
    assert list(grads) == list(model.parameters())
    assert [k for k, g in grads.items() if not get(g).any()] == []


def test_channels_in_channels_out(backend):
    model = nn.Model.from_config({"blocks": [{"d_input": 6, "layer": "mlp"}]}, key=em.random.key(0))
    x = put(numbers(0, 2, 3, 6))
    close(model(x)[0], model.blocks[0](x)[0], 0.0)
    assert model.embedding is None and model.head is None


def test_equal_keys_build_equal_models(backend):
    first, second = from_toml(), from_toml()
    same_trees(first.tensors(), second.tensors(), 0.0)


def test_save_and_load(tmp_path, backend):
    model = from_toml()
    model.save(tmp_path / "model.safetensors")
    other = nn.Model.load(tmp_path / "model.safetensors")
    same_trees(other.tensors(), model.tensors(), 0.0)
    assert other.config == model.config
    close(other(tokens())[0], model(tokens())[0], 0.0)


@pytest.mark.parametrize("config, message", [
    ({"blocks": []}, "expected at least one block"),
    ({}, "ModelConfig: needs 'blocks'"),
    ({"blocks": [{"layer": "mlp"}]}, r"needs 'blocks\.0\.d_input'"),
    ({"blocks": [{"d_input": "six"}]}, r"blocks\.0\.d_input: Input should be a valid integer.*received 'six'"),
    ({"blocks": [{"d_input": 0}]}, r"blocks\.0\.d_input: Input should be greater than or equal to 1; received 0"),
    ({"blocks": [{"d_input": 6, "lyer": "mlp"}]}, r"unknown key 'blocks\.0\.lyer'; did you mean layer"),
    ({"blocks": [{"d_input": 6}], "head": "tied"}, "head='tied' needs vocab_size"),
    ({"blocks": [{"d_input": 6}], "head": "loose"}, "head: Input should be 'tied', 'dense', .* or 'features'; received 'loose'"),
    ({"blocks": [{"d_input": 6}], "vocabsize": 3}, "unknown key 'vocabsize'; did you mean vocab_size"),
    ([1, 2], "expected a table of blocks, vocab_size.*received"),
])
def test_wrong_configs(config, message):
    with em.using("numpy"), pytest.raises(ConfigError, match=message):
        nn.Model.from_config(config)


def test_tokens_have_two_axes(backend):
    with pytest.raises(ShapeError, match=r"model: expected tokens of shape \(batch, length\), got \(9,\)"):
        dna()(tokens()[0])
