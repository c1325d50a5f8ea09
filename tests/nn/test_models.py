"""Models: from plain dicts and TOML, forward against steps, heads; HyenaDNA."""

import tomllib

import numpy as np
import pytest

import ember_ml as em
from ember_ml import nn
from ember_ml.errors import ConfigError, DataError, RegistryError, ShapeError, WeightsError
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


def test_a_block_without_residual_may_change_the_width(backend):
    entry = {"layer": "dense", "layer_config": {"d_output": 4}, "residual": "feedforward_residual"}
    made = nn.Model.from_config({"blocks": [{**entry, "d_input": 6}, {"layer": "mlp", "d_input": 4}]})
    assert made(em.zeros((1, 3, 6)))[0].shape == (1, 3, 4)


@pytest.mark.parametrize("config, message", [
    ({"blocks": []}, "expected at least one block"),
    ({}, "ModelConfig: needs 'blocks'"),
    ({"blocks": [{"layer": "mlp"}]}, r"needs 'blocks\.0\.d_input'"),
    ({"blocks": [{"d_input": "six"}]}, r"blocks\.0\.d_input: Input should be a valid integer.*received 'six'"),
    ({"blocks": [{"d_input": 0}]}, r"blocks\.0\.d_input: Input should be greater than or equal to 1; received 0"),
    ({"blocks": [{"d_input": 6, "lyer": "mlp"}]}, r"unknown key 'blocks\.0\.lyer'; did you mean layer"),
    ({"blocks": [{"d_input": 6}], "head": "tied"}, "head='tied' needs vocab_size"),
    ({"blocks": [{"d_input": 6}], "head": "loose"}, "head: Input should be 'tied', 'dense', .* or 'features'; received 'loose'"),
    ({"blocks": [{"d_input": 6}], "head": "classifier"}, "outputs belongs to head='classifier'.*outputs=None"),
    ({"blocks": [{"d_input": 6}], "outputs": 2}, "outputs belongs to"),
    ({"blocks": [{"d_input": 6}, {"d_input": 4}], "head": "tied", "vocab_size": 3}, "head='tied' needs the last block's channels, 4"),
    ({"blocks": ["mpl"]}, "unknown block 'mpl'"),
    ({"blocks": [{"layer": "mlp", "repeat": 0}], "defaults": {"d_input": 6}}, "repeat to be a number from 1 .* received 0"),
    ({"blocks": ["mlp"], "defaults": {"layer": "gru"}}, "expected defaults to be a table of d_input"),
    ({"blocks": ["mlp", "hyena"], "defaults": {"d_input": 6}}, r"blocks\.1: layer 'hyena': HyenaConfig: needs 'l_max'"),
    ({"blocks": ["mlp", {"layer": "mpl"}], "defaults": {"d_input": 6}}, r"blocks\.1: unknown layer 'mpl': did you mean mlp"),
    ({"blocks": ["mlp", {"layer": "mlp", "d_input": 4}], "defaults": {"d_input": 6}}, r"d_input of blocks\.1 to be the 6 channels that blocks\.0 gives"),
    ({"blocks": [{"d_input": 6}], "logit_cap": 0.0}, r"logit_cap.*Input should be greater than 0; received 0\.0"),
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


PACKED = {"vocab_size": 7, "head": "tied", "norm": "rms_norm", "defaults": {"d_input": 8, "norm": "rms_norm"},
          "blocks": [{"layer": "self_attention", "self_attention_config": {"heads": 2, "rope": {}, "window": 4}}, "mamba", "lstm", "gated_mlp"]}


def test_a_model_keeps_packed_documents_apart(backend):
    model = nn.Model.from_config(PACKED, key=em.random.key(0))
    tokens = em.random.randint(em.random.key(1), (2, 9), 0, 7)
    segments = em.tensor([[1, 1, 1, 1, 2, 2, 2, 0, 0], [1, 1, 1, 1, 1, 1, 2, 3, 3]], dtype="int32")
    y, hidden = model(tokens, segments=segments)[0], model.hidden(tokens, segments=segments)[0]
    for row, first, length in ((0, 0, 4), (0, 4, 3), (1, 0, 6), (1, 6, 1), (1, 7, 2)):
        alone = tokens[row:row + 1, first:first + length]
        close(y[row:row + 1, first:first + length], model(alone)[0], 1e-4)
        close(hidden[row:row + 1, first:first + length], model.hidden(alone)[0], 1e-4)
    assert np.abs(get(y) - get(model(tokens)[0]))[:, -1].max() > 1e-3


@pytest.mark.parametrize("pool", ["mean", "max", "last", "first"])
def test_a_pooled_head_leaves_padding_out(pool, backend):
    blocks = [{"layer": "hyena", "hyena_config": {"l_max": 9}}, {"layer": "self_attention", "self_attention_config": {"heads": 2, "causal": False}}]
    model = nn.Model.from_config({**PACKED, "head": "classifier", "outputs": 3, "pool": pool, "blocks": blocks}, key=em.random.key(0))
    tokens = em.random.randint(em.random.key(1), (3, 9), 0, 7)
    lengths = (9, 4, 1)
    y = model(tokens, segments=em.tensor([[1] * n + [0] * (9 - n) for n in lengths], dtype="int32"))[0]
    for row, n in enumerate(lengths):
        close(y[row:row + 1], model(tokens[row:row + 1, :n])[0], 1e-4)


def test_segments_are_an_input_of_what_is_compiled():
    pytest.importorskip("mlx.core", reason="mlx is not installed")
    with em.using("mlx"):
        model = nn.Model.from_config({**PACKED, "blocks": PACKED["blocks"][:1]}, key=em.random.key(0))
        tokens = em.random.randint(em.random.key(1), (1, 6), 0, 7)

        def run(tensors, tokens, segments):
            with model.using(tensors):
                return model(tokens, segments=segments)[0]
        compiled = em.compile(run)
        for row in ([1, 1, 1, 2, 2, 2], [1, 2, 2, 2, 3, 0]):
            segments = em.tensor([row], dtype="int32")
            close(compiled(model.tensors(), tokens, segments), model(tokens, segments=segments)[0], 1e-5)


@pytest.mark.parametrize("change, message", [
    ({"blocks": ["mlp", {"layer": "hyena", "hyena_config": {"l_max": 9}}]}, r"blocks.1.layer \(Hyena\) cannot keep the documents"),
    ({"blocks": [{"layer": "parallel", "parallel_config": {"mixers": [{"layer": "gru"}, {"layer": "long_conv", "layer_config": {"l_max": 9}}]}}]},
     r"blocks.0.layer.mixers.1 \(LongConv\) cannot .* one transform, which has no borders inside; give it a row a document"),
    ({"blocks": [{"layer": "gru", "pool": "pool", "pool_config": {"stride": 3}}]}, r"blocks.0.pool \(Pool\) cannot .* its strides cross the borders"),
    ({"head": "classifier", "outputs": 2, "blocks": [{"layer": "long_conv", "long_conv_config": {"l_max": 9, "bidirectional": True}}]},
     r"\(LongConv\) cannot"),
    ({"head": "classifier", "outputs": 2, "blocks": [{"layer": "moe", "moe_config": {"num_experts": 2, "expert_type": "gru", "level": "sequence"}}]},
     r"\(SparseMoE\) cannot .* mean of the row")])
def test_a_layer_that_cannot_pack_is_named(change, message):
    model = nn.Model.from_config({**PACKED, **change})
    tokens = em.ops.zeros((1, 9), "int32")
    with pytest.raises(em.UnsupportedOp, match=message):
        model(tokens, segments=tokens)


def test_segments_fit_the_tokens_and_no_state():
    model = nn.Model.from_config(PACKED)
    tokens = em.ops.zeros((1, 9), "int32")
    with pytest.raises(em.ShapeError, match=r"segments of shape \(batch, length\) = \(1, 9\), and no state; got \(1, 8\)$"):
        model(tokens, segments=tokens[:, 1:])
    with em.debug_checks():
        for row in ([1, 1, 2, 2, 1, 1, 3, 0, 0], [1, 1, 0, 1, 2, 2, 3, 0, 0], [0, 0, 1, 1, -1, 0, 0, 0, 0]):
            with pytest.raises(DataError, match=r"each in one piece, and 0 for padding; got \[.*\] in row 1"):
                model(em.ops.zeros((2, 9), "int32"), segments=em.tensor([[1] * 9, row], dtype="int32"))
    with pytest.raises(em.ShapeError, match="a state: packed rows begin anew"):
        model(tokens, model.initial_state(1), segments=tokens)
