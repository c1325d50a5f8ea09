"""Blocks: what goes where, by registered names; and what a wrong config is told."""

import pytest

import ember_ml as em
from ember_ml import nn
from ember_ml.errors import ConfigError, RegistryError, ShapeError, UnsupportedOp
from ember_ml.nn.layers import MLPConfig
from ember_ml.registry import blocks
from tests.nn._help import close, get, numbers, put

D = 4
HYENA = dict(l_max=8, filter={"width": 8})


def block(**fields):
    return nn.Block(D, key=em.random.key(0), **fields)


def x(seed=0, *lead):
    return put(numbers(seed, *(lead or (2, 8)), D))


def test_prenorm_and_postnorm(backend):
    pre = block(layer="mlp", norm="layer_norm")
    post = block(layer="mlp", norm="layer_norm", prenorm=False)
    y, state = pre(x())
    assert state is None
    close(y, x() + pre.layer(pre.norm(x())), 1e-6)
    close(post(x())[0], post.norm(x() + post.layer(x())), 1e-6)


@pytest.mark.parametrize("kind, config", [
    ("residual", {}), ("affine_residual", {"depth": 4}), ("highway_residual", {}), ("decay_residual", {"depth": 2})])
def test_residual_kinds(kind, config, backend):
    made = block(layer="mlp", norm="rms_norm", residual=kind, residual_config=config)
    assert made.residual.config.depth == config.get("depth", 1)
    close(made(x())[0], made.residual(x(), made.layer(made.norm(x()))), 1e-6)


def test_pool_comes_last(backend):
    made = block(layer="mlp", norm="layer_norm", prenorm=False, pool="dense")
    close(made(x())[0], made.pool(made.norm(x() + made.layer(x()))), 1e-6)


@pytest.mark.parametrize("kind", ["mean", "max", "last", "first"])
def test_pooling_whole_sequences_and_by_strides(kind, backend):
    reduce = {"mean": lambda a, axis: a.mean(axis), "max": lambda a, axis: a.max(axis), "last": lambda a, axis: a.take(-1, axis),
              "first": lambda a, axis: a.take(0, axis)}[kind]
    whole = block(layer="lstm", pool="pool", pool_config={"kind": kind})
    y = get(block(layer="lstm")(x())[0])
    close(whole(x())[0], reduce(y, 1), 1e-6)
    close(block(layer="lstm", pool="pool", pool_config={"kind": kind, "stride": 4})(x())[0], reduce(y.reshape(2, 2, 4, D), 2), 1e-6)
    state = whole.initial_state(2)
    _, state = whole(x()[:, :3], state)
    for t in range(3, 8):                                   # a step tells of the positions so far
        got, state = whole.step(x()[:, t], state)
        close(got, reduce(y[:, :t + 1], 1), 1e-5)


def test_pooling_by_strides_has_no_step(backend):
    with pytest.raises(UnsupportedOp, match="only every 2th step would have an output"):
        block(pool="pool", pool_config={"stride": 2}).initial_state(1)
    with pytest.raises(ShapeError, match="a length that is a multiple of 3 and not 0, got 8"):
        block(pool="pool", pool_config={"stride": 3})(x())


def test_parts_take_their_own_configs(backend):
    made = block(layer="mlp", norm="layer_norm", norm_config={"eps": 0.5, "bias": False})
    assert made.norm.config.eps == 0.5 and "norm.bias" not in made.parameters()


PRESETS = {
    "transformer": (dict(heads=2, rope={}, d_inner=6), ["self_attention", "gated_mlp"]),
    "lstm": ({}, ["lstm"]),
    "mamba": (dict(d_state=3), ["mamba"]),
    "hyena": (dict(**HYENA, d_inner=6), ["hyena", "mlp"]),
    "fftconv": (dict(l_max=8), ["long_conv", "mlp"]),
    "moe": (dict(heads=2, num_experts=3, expert_config={"d_inner": 5}), ["self_attention", "moe"]),
    "rwkv": ({}, ["rwkv4", "rwkv_channel_mixing"]),
    "hybrid": (dict(mixers=[{"layer": "mamba"}, {"layer": "self_attention", "layer_config": {"heads": 2}}], d_inner=6),
               ["parallel", "gated_mlp"]),
}


def test_every_preset_has_a_row():
    assert sorted(PRESETS) == sorted(set(blocks.names()) - {"block"})


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_its_layers_in_a_row(name, backend):
    options, listed = PRESETS[name]
    made = blocks.instantiate(name, D, key=em.random.key(0), dropout=0.1, **options)
    assert [b.config.layer for b in made.blocks] == listed and all(b.norm and b.config.dropout == 0.1 for b in made.blocks)
    want = x()
    for b in made.blocks:
        want, _ = b(want)
    whole, states = made(x())
    close(whole, want, 0.0)
    assert states == [None] * len(listed)
    got, states = made(x()[:, :5], made.initial_state(2))
    close(got, whole[:, :5], 1e-4)
    for t in range(5, 8):
        got, states = made.step(x()[:, t], states)
        close(got, whole[:, t], 1e-4)


def test_an_option_goes_to_the_layers_that_have_it():
    with em.using("numpy"):
        made = blocks.instantiate("hyena", D, activation="relu", norm="rms_norm", **HYENA)
        assert [b.layer.config.activation for b in made.blocks] == ["relu", "relu"]
        assert [type(b.norm).__name__ for b in made.blocks] == ["RMSNorm", "RMSNorm"]
        with pytest.raises(ConfigError, match="TransformerBlock: unknown key 'haeds'; did you mean heads"):
            blocks.instantiate("transformer", D, haeds=2)
        with pytest.raises(ConfigError, match="SelfAttentionConfig: heads: expected a"):
            blocks.instantiate("transformer", D, heads="two")


def test_parallel_sums_its_mixers(backend):
    mixers = [{"layer": "gru"}, {"layer": "mlp", "layer_config": {"d_inner": 3}}]
    made = block(layer="parallel", layer_config={"mixers": mixers}).layer
    close(made(x())[0], made.mixers[0](x())[0] + made.mixers[1](x()), 1e-6)
    named = block(layer="parallel", layer_config={"mixers": ["gru", {"layer": "mlp"}]}).layer
    close(named(x())[0], named.mixers[0](x())[0] + named.mixers[1](x()), 1e-6)
    with pytest.raises(ConfigError, match="at least one mixer"):
        block(layer="parallel", layer_config={"mixers": []})
    with pytest.raises(ConfigError, match="channel or sequence mixers; received 'residual'"):
        block(layer="parallel", layer_config={"mixers": [{"layer": "residual"}]})


@pytest.mark.parametrize("place, kind", [("norm", "a norm, such as 'rms_norm',"), ("residual", "a connection of x and y"), ("pool", "a map of positions")])
def test_a_layer_in_a_place_of_another_kind_is_refused(place, kind):
    wrong = {"norm": ["gru", "residual", "pool"], "residual": ["gru", "mlp", "pool"], "pool": ["gru", "residual"]}
    with em.using("numpy"):
        for name in wrong[place]:
            with pytest.raises(ConfigError, match=f"block: expected {kind}.* as {place}; received '{name}'"):
                block(layer="mlp", **{place: name})
        with pytest.raises(ConfigError, match="expected a norm.*received 'gru'"):
            nn.Model.from_config({"blocks": [{"d_input": 4, "layer": "mlp"}], "norm": "gru"})


def test_without_a_layer_norm_and_pool_are_left(backend):
    made = block(norm="rms_norm")
    close(made(x())[0], made.norm(x()), 0.0)


def test_dropout_is_on_the_layers_output(backend):
    made = block(layer="mlp", dropout=0.5)
    with nn.training(em.random.key(1)):
        y, _ = made(x())
    with nn.training(em.random.key(1)):
        want = x() + nn.layers.dropout(made.layer(x()), 0.5)
    close(y, want, 0.0)
    dropped = get(y) == get(x())
    assert 0.2 < dropped.mean() < 0.8 and not (get(made(x())[0]) == get(x())).any()


def test_a_sequence_mixer_hands_its_state_on(backend):
    made = block(layer="hyena", layer_config=HYENA, norm="layer_norm")
    whole, state = made(x())
    assert state is None
    first, state = made(x()[:, :5], made.initial_state(2))
    close(first, whole[:, :5], 1e-5)
    for t in range(5, 8):
        y, state = made.step(x()[:, t], state)
        close(y, whole[:, t], 1e-5)


def test_channel_mixers_have_no_state(backend):
    made = block(layer="moe", layer_config={"num_experts": 3, "expert_config": {"d_inner": 5}})
    assert made.initial_state(2) is None
    y, state = made.step(x()[:, 0], None)
    assert state is None
    close(y, made(x())[0][:, 0], 1e-6)


def test_every_spelling_of_the_layers_config():
    want = nn.BlockConfig(d_input=D, layer="mlp", layer_config={"d_inner": 3})
    assert nn.BlockConfig(d_input=D, layer="mlp", mlp_config={"d_inner": 3}) == want
    assert nn.ModelConfig(blocks=[{"d_input": D, "layer": "mlp", "mlp_config": {"d_inner": 3}}]).blocks == [want]
    ready = MLPConfig(D, 3)
    with em.using("numpy"):
        for made in (block(layer="mlp", layer_config=ready), block(layer="mlp", mlp_config=ready),
                     blocks.instantiate("block", D, "mlp", {"d_inner": 3})):
            assert made.layer.fc1.weight.shape == (3, D) and made.layer.config == ready


def test_equal_keys_build_equal_blocks(backend):
    first, second = (block(layer="hyena", layer_config=HYENA, residual="highway_residual") for _ in range(2))
    assert [t.tolist() for t in first.tensors().values()] == [t.tolist() for t in second.tensors().values()]


@pytest.mark.parametrize("fields, error, message", [
    (dict(layer="hyenna"), RegistryError, "unknown layer 'hyenna': did you mean hyena"),
    (dict(layer="mlp", norm="layernorm"), RegistryError, "unknown layer 'layernorm': did you mean layer_norm"),
    (dict(layer="mlp", layer_config={"inner": 3}), ConfigError,
     "layer 'mlp': MLPConfig: unknown key 'inner'; did you mean d_inner"),
    (dict(layer="mlp", hyena_config={}), ConfigError, "BlockConfig: unknown key 'hyena_config'"),
    (dict(layer="mlp", mlp_config={}, layer_config={}), ConfigError, "unknown key 'mlp_config'"),
    (dict(layer="mlp", layer_config={"d_input": 5}), ConfigError,
     "expected mlp's config without d_input.*the block's, 4; received 5"),
    (dict(layer="mlp", layer_config=MLPConfig(5)), ConfigError,
     r"expected mlp's d_input to be the block's, 4; received MLPConfig\(d_input=5"),
    (dict(layer="mlp", layer_config=3), ConfigError, "received 3"),
    (dict(layer="residual"), ConfigError, "expected a channel or sequence mixer as layer; received 'residual'"),
    (dict(layer="mlp", residual="affine_residual", residual_config={"dept": 2}), ConfigError, "did you mean depth"),
    (dict(layer="mlp", prenom=True), ConfigError, "unknown key 'prenom'; did you mean prenorm"),
])
def test_wrong_configs(fields, error, message):
    with em.using("numpy"), pytest.raises(error, match=message):
        block(**fields)
