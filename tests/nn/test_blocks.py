"""Blocks: what goes where, by registered names; and what a wrong config is told."""

import pytest

import ember_ml as em
from ember_ml import nn
from ember_ml.errors import ConfigError, RegistryError
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
    made = block(layer="moe", layer_config={"num_experts": 3, "d_inner": 5})
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
