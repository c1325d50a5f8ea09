"""Models: from plain dicts and TOML, forward against steps, files, misuse; HyenaDNA."""

import tomllib

import numpy as np
import pytest

import ember_ml as em
from ember_ml import nn
from ember_ml.errors import ConfigError, RegistryError, ShapeError, WeightsError
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
layer_config = {num_experts = 3, expert_config = {d_inner = 4}}
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


def test_a_block_a_line_with_defaults_presets_and_repeats(backend, tmp_path):
    (tmp_path / "model.toml").write_text("""
vocab_size = 5
head = "tied"
norm = "rms_norm"
defaults = {d_input = 6, norm = "rms_norm", dropout = 0.1}
blocks = [
    "gru",
    {layer = "hyena", hyena_config = {l_max = 9, filter = {width = 8}}, norm = "layer_norm"},
    {block = "transformer", heads = 2, repeat = 2},
    {layer = "mlp", repeat = 2},
    "lstm",
]
""")
    made = nn.Model.from_config(tmp_path / "model.toml", key=em.random.key(0))
    got = [(b.config.layer, b.config.norm, b.config.dropout) for b in made.blocks]
    assert got == [("gru", "rms_norm", 0.1), ("hyena", "layer_norm", 0.1), *[("self_attention", "rms_norm", 0.1),
                   ("gated_mlp", "rms_norm", 0.1)] * 2, *[("mlp", "rms_norm", 0.1)] * 2, ("lstm", "rms_norm", 0.1)]
    assert made.config.defaults == {} and made.blocks[2].layer.config.heads == 2
    assert made(tokens())[0].shape == (2, 9, 5)
    for name in ("again.toml", "again.json"):
        made.write_config(tmp_path / name)
        again = nn.Model.from_config(tmp_path / name, key=em.random.key(0))
        assert again.config == made.config
        same_trees(again.tensors(), made.tensors(), 0.0)
    lines = (tmp_path / "again.toml").read_text().splitlines()
    assert sum("layer =" in line for line in lines) == 9                      # one line a block


def test_a_ready_layer_config_is_saved_and_loaded(tmp_path):
    with em.using("numpy"):
        block = nn.BlockConfig(d_input=6, layer="fftconv", fftconv_config=nn.layers.FFTConvConfig(d_input=6, l_max=9))
        made = nn.Model(nn.ModelConfig(blocks=[block], vocab_size=5, head="tied"))
        made.save(tmp_path / "m.safetensors")
        again = nn.Model.load(tmp_path / "m.safetensors")
        same_trees(again.tensors(), made.tensors(), 0.0)
        assert again.blocks[0].layer.config == made.blocks[0].layer.config


def test_scales_and_caps(backend):
    config = {"vocab_size": 5, "blocks": [{"d_input": 6, "layer": "mlp"}], "head": "dense"}
    plain = nn.Model.from_config(config, key=em.random.key(0))
    scaled = nn.Model.from_config({**config, "embedding_scale": 2.0, "logit_scale": 3.0, "logit_cap": 1.5}, key=em.random.key(0))
    hidden, _ = plain.blocks[0](plain.embedding(tokens()) * 2.0)
    logits = 3.0 * get(plain.head(hidden))
    close(scaled(tokens())[0], 1.5 * np.tanh(logits / 1.5), 1e-5)


def bytes_of(file: str, config: dict) -> str:
    """A small file of one tensor, with a config that describes another model."""
    from ember_ml import weights
    with em.using("numpy"):
        weights.save(file, {"embedding.weight": em.zeros((4, 4))}, config=config)
    return file


HUGE = 10 ** 9


@pytest.mark.parametrize("config", [
    {"blocks": [{"d_input": HUGE, "layer": "mlp"}]},
    {"blocks": [{"d_input": 4, "layer": "mlp", "layer_config": {"d_inner": HUGE}}]},
    {"blocks": [{"d_input": 4}], "vocab_size": HUGE},
    {"blocks": [{"d_input": 4, "layer": "hyena", "layer_config": {"l_max": HUGE}}]},
    {"blocks": [{"d_input": 4, "layer": "hyena", "layer_config": {"l_max": 900_001, "filter": {"features": 900_001}}}]},
    {"blocks": [{"d_input": 4, "layer": "hyena", "layer_config": {"l_max": 8, "filter": {"depth": HUGE}}}]},
    {"blocks": [{"d_input": 4, "layer": "moe", "layer_config": {"num_experts": HUGE, "expert_config": {"d_inner": 4}}}]},
    {"blocks": [{"d_input": 4, "layer": "moe", "layer_config": {"num_experts": HUGE, "expert_type": "dense"}}]},
    {"blocks": [{"d_input": 64, "layer": "gru"}] * 5000},
    {"blocks": [{"d_input": 4, "layer": "mlp", "repeat": HUGE}]},
    {"blocks": [{"d_input": 4, "layer": "mlp", "repeat": 10_000}] * 1000},
    {"family": "transformer", "d_input": 4, "n_layer": HUGE},
    {"blocks": [{"d_input": 4, "layer": "ltc", "layer_config": {"wiring": {"kind": "fully_connected", "units": 100_000}}}]},
    {"blocks": [{"d_input": 4, "layer": "wired_cfc", "layer_config": {"wiring": {"kind": "auto_ncp", "units": HUGE, "d_output": 2}}}]},
])
def test_a_hostile_config_cannot_ask_for_more_than_its_file_holds(config, tmp_path):
    import tracemalloc

    path = bytes_of(tmp_path / "small.safetensors", config)
    tracemalloc.start()
    try:
        with pytest.raises((WeightsError, ConfigError)):
            nn.Model.load(path, device="numpy")
        assert tracemalloc.get_traced_memory()[1] < 64e6
    finally:
        tracemalloc.stop()


def test_loading_keeps_the_files_dtype_and_engine(backend, tmp_path):
    made = dna().astype("bfloat16")
    made.save(tmp_path / "m.safetensors")
    again = nn.Model.load(tmp_path / "m.safetensors")
    same_trees(again.tensors(), made.tensors(), 0.0)
    assert {t.dtype.name for t in again.tensors().values()} == {"bfloat16"}
    assert all(t.backend is em.backend.get(backend) for t in again.tensors().values())


def test_a_block_without_residual_may_change_the_width(backend):
    entry = {"layer": "dense", "layer_config": {"d_output": 4}, "residual": "feedforward_residual"}
    made = nn.Model.from_config({"blocks": [{**entry, "d_input": 6}, {"layer": "mlp", "d_input": 4}]})
    assert made(em.zeros((1, 3, 6)))[0].shape == (1, 3, 4)


@pytest.mark.parametrize("config, message", [
    ({"blocks": []}, "expected at least one block"),
    ({}, "ModelConfig: needs 'blocks'"),
    ({"blocks": [{"layer": "mlp"}]}, r"needs 'blocks\.0\.d_input'"),
    ({"blocks": [{"d_input": "six"}]}, r"blocks\.0\.d_input: expected a whole number; received 'six'"),
    ({"blocks": [{"d_input": 0}]}, r"blocks\.0\.d_input: expected a number of at least 1; received 0"),
    ({"blocks": [{"d_input": 6, "lyer": "mlp"}]}, r"unknown key 'blocks\.0\.lyer'; did you mean layer"),
    ({"blocks": [{"d_input": 6}], "head": "tied"}, "head='tied' needs vocab_size"),
    ({"blocks": [{"d_input": 6}], "head": "loose"}, "head: expected 'tied', 'dense', .* or 'features'; received 'loose'"),
    ({"blocks": [{"d_input": 6}], "head": "classifier"}, "outputs belongs to head='classifier'.*outputs=None"),
    ({"blocks": [{"d_input": 6}], "outputs": 2}, "outputs belongs to"),
    ({"blocks": [{"d_input": 6}, {"d_input": 4}], "head": "tied", "vocab_size": 3}, "head='tied' needs the last block's channels, 4"),
    ({"blocks": ["mpl"]}, "unknown block 'mpl'"),
    ({"blocks": [{"layer": "mlp", "repeat": 0}], "defaults": {"d_input": 6}}, "repeat to be a number from 1 .* received 0"),
    ({"blocks": ["mlp"], "defaults": {"layer": "gru"}}, "expected defaults to be a table of d_input"),
    ({"blocks": ["mlp", "hyena"], "defaults": {"d_input": 6}}, r"blocks\.1: layer 'hyena': HyenaConfig: needs 'l_max'"),
    ({"blocks": ["mlp", {"layer": "mpl"}], "defaults": {"d_input": 6}}, r"blocks\.1: unknown layer 'mpl': did you mean mlp"),
    ({"blocks": ["mlp", {"layer": "mlp", "d_input": 4}], "defaults": {"d_input": 6}}, r"d_input of blocks\.1 to be the 6 channels that blocks\.0 gives"),
    ({"blocks": [{"d_input": 6}], "logit_cap": 0.0}, r"logit_cap: expected a number above 0\.0; received 0\.0"),
    ({"blocks": ["mlp", {"block": "transformer", "repaet": 2}], "defaults": {"d_input": 6}},
     r"blocks\.1: TransformerBlock: unknown key 'repaet'; did you mean repeat"),
    ({"family": ["x"], "d_input": 4}, r"unknown model \['x'\]: registered are"),
    ({"family": "transfromer", "d_input": 4}, "unknown model 'transfromer': did you mean transformer"),
    ({"blocks": [{"d_input": 6}], "vocabsize": 3}, "unknown key 'vocabsize'; did you mean vocab_size"),
    ([1, 2], "expected a table of blocks, vocab_size.*received"),
])
def test_wrong_configs(config, message):
    with em.using("numpy"), pytest.raises((ConfigError, RegistryError), match=message):
        nn.Model.from_config(config)


def test_tokens_have_two_axes(backend):
    with pytest.raises(ShapeError, match=r"model: expected tokens of shape \(batch, length\), got \(9,\)"):
        dna()(tokens()[0])
