"""Mixture of experts: the router's rule, its bias, invalid logits, and sparse against dense.

Values and gradients against float64 NumPy are in test_channel_mixers, the compiled step in test_state_under_compile.
"""

import math

import numpy as np
import pytest

import ember_ml as em
from ember_ml import nn
from ember_ml.errors import ConfigError
from ember_ml.nn.moe.routing import SoftmaxRouter, SoftmaxRouterConfig
from ember_ml.registry import layers
from tests.nn._help import close, get, numbers, put, same_trees

D, E = 6, 4


def router(logits, k=2, rate=1e-3, bias=None):
    """A router whose logits for the tokens x = identity are the given rows (tokens, experts)."""
    logits = np.asarray(logits, np.float64)
    made = SoftmaxRouter(SoftmaxRouterConfig(len(logits), logits.shape[1], k, balance_rate=rate), key=em.random.key(0))
    made.update({"weight": put(logits.T)})
    if bias is not None:
        made.update({"bias": put(bias)})
    return made, put(np.eye(len(logits)))


def moe(**fields):
    return layers.instantiate("moe", D, E, key=em.random.key(1), **{"expert_config": {"d_inner": 5}, **fields})


def test_the_choice_is_by_value_then_by_index(backend):
    logits = np.random.default_rng(0).integers(0, 3, size=(200, 8)) / 2.0         # ties in almost every row
    made, x = router(logits, k=3)
    ids, weights, _ = made(x)
    want = np.array([sorted(range(8), key=lambda e: (-row[e], e))[:3] for row in logits])
    assert ids.dtype is em.int32 and (ids.numpy() == want).all()
    p = np.exp(np.take_along_axis(logits, want, -1))
    close(weights, p / p.sum(-1, keepdims=True), 1e-6)
    assert weights.dtype is em.float32


def test_one_expert_keeps_its_probability_so_that_the_router_learns(backend):
    logits = numbers(0, 5, E)
    made, x = router(logits, k=1)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    close(made(x).weights[:, 0], p.max(-1), 1e-6)
    layer, x = moe(k=1), put(numbers(1, 9, D))
    run = nn.value_and_grad(layer, lambda m: (m(x) * x).sum())
    _, grads = run(layer.parameters(), layer.buffers(), em.random.key(0))
    assert np.abs(get(grads["router.weight"])).max() > 1e-4


def test_the_bias_chooses_and_does_not_weigh(backend):
    made, x = router([[0.0, 1.0, 2.0, 3.0]], bias=[9.0, 0.0, 0.0, 0.0])
    ids, weights, _ = made(x)
    assert ids.tolist() == [[0, 3]]
    close(weights, [[1 / (1 + math.exp(3)), 1 / (1 + math.exp(-3))]], 1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_tokens_are_routed_in_float32(dtype, backend):
    made = SoftmaxRouter(SoftmaxRouterConfig(D, 16, 4), key=em.random.key(2))
    x = put(numbers(0, 50, D), dtype)
    scores = get(x) @ get(made.weight).T
    ids, weights, _ = made(x)
    assert weights.dtype is em.float32 and (ids.numpy() == np.argsort(-scores, -1)[:, :4]).all()
    assert layers.instantiate("moe", D, E)(x).dtype is x.dtype


def test_training_moves_the_bias_towards_idle_experts(backend):
    made, x = router([[5, 4, 0, 0], [5, 0, 4, 0], [5, 4, 0, 0]], rate=0.25, bias=[0.5, 0.0, 0.0, 0.0])
    with nn.training() as scope:
        made(x)
    load = np.array([3, 2, 1, 0])
    assert scope.updates[id(made), "bias"].tolist() == [0.25, -0.25, 0.25, 0.25]   # mean load 1.5
    assert scope.metrics[id(made), "load_cv"].item() == pytest.approx(load.std() / load.mean(), rel=1e-6)
    assert made.bias.tolist() == [0.5, 0.0, 0.0, 0.0]


def test_a_balanced_load_leaves_the_bias_alone(backend):
    made, x = router([[5, 4, 0, 0], [0, 0, 5, 4]], bias=[0.0, 0.1, 0.0, 0.0])
    with nn.training() as scope:
        made(x)
    assert scope.updates[id(made), "bias"].tolist() == made.bias.tolist()
    assert scope.metrics[id(made), "load_cv"].item() == 0.0


def test_no_rate_no_update(backend):
    made, x = router(numbers(0, 5, E), rate=0.0)
    with nn.training() as scope:
        made(x)
    assert scope.updates == {}


def test_the_bias_balances_a_skewed_router():
    """Without updates one expert has almost everything; with them the load evens out."""
    with em.using("numpy"):
        made = SoftmaxRouter(SoftmaxRouterConfig(D, E, 1, balance_rate=0.005), key=em.random.key(0))
        skew = numbers(1, E, D) * 0.3
        skew[2, 0] += 2.0
        made.update({"weight": put(skew)})
        cv = []
        for step in range(300):
            x = numbers(100 + step, 256, D)
            x[:, 0] = 1.0
            with nn.training() as scope:
                made(put(x))
            cv.append(scope.metrics[id(made), "load_cv"].item())
            made.update({"bias": scope.updates[id(made), "bias"]})
    assert cv[0] > 1.5 and np.mean(cv[-50:]) < 0.2


def test_sparse_is_dense_when_every_expert_is_chosen(backend):
    sparse = moe(k=E)
    dense = layers.instantiate("mixture_of_experts", D, E, expert_config={"d_inner": 5}, key=em.random.key(1))
    assert [t.tolist() for t in sparse.tensors().values()] == [t.tolist() for t in dense.tensors().values()]
    x = put(numbers(0, 3, 7, D))
    close(sparse(x), dense(x), 1e-6)

    def run(layer):
        def loss(params, x):
            with layer.using(params):
                return (layer(x) * put(numbers(1, 3, 7, D))).sum()
        return em.grad(loss, (0, 1))(layer.parameters(), x)

    same_trees(run(sparse), run(dense), 1e-5)


def test_experts_without_tokens_get_no_gradient(backend):
    layer = moe()
    layer.update({"router.bias": put([5.0, 5.0, 0.0, 0.0])})
    x = put(numbers(0, 9, D))
    _, grads = nn.value_and_grad(layer, lambda m: m(x).sum())(layer.parameters(), layer.buffers(), em.random.key(0))
    for name in ("w1", "b1", "w2", "b2"):
        g = get(grads[f"experts.{name}"])
        assert np.abs(g[:2]).max() > 0 and not g[2:].any()


def test_tokens_are_treated_alone(backend):
    layer, x, order = moe(), numbers(0, 12, D), np.random.default_rng(0).permutation(12)
    close(layer(put(x[order])), get(layer(put(x)))[order], 1e-6)
    close(layer(put(x).reshape(3, 4, D)), get(layer(put(x))).reshape(3, 4, D), 1e-6)


def test_no_tokens_no_output_and_no_change(backend):
    layer, x = moe(), em.zeros((0, 5, D))
    run = nn.value_and_grad(layer, lambda m: m(x).sum())
    out, grads = run(layer.parameters(), layer.buffers(), em.random.key(0))
    assert layer(x).shape == (0, 5, D) and out.loss.item() == 0.0 and out.metrics["router.load_cv"].item() == 0.0
    assert out.buffers["router.bias"].tolist() == [0.0] * E and not any(g.numpy().any() for g in grads.values())


@pytest.mark.filterwarnings("ignore:invalid value encountered in matmul")
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_invalid_logits_raise_where_values_are_checked(bad, backend):
    made, x = router([[1.0, 2.0, 0.0], [1.0, bad, 0.0]])
    x = put(np.array([[1.0, 0.0], [0.5, 0.5], [1.0, 0.0]])) if math.isinf(bad) else x
    with em.debug_checks(backend != "numpy"):
        with pytest.raises(FloatingPointError, match=r"expected finite logits, got \S+ for token \d, expert [12]"):
            made(x)


@pytest.mark.parametrize("engine", ["torch", "mlx"])
def test_elsewhere_an_invalid_expert_is_never_chosen(engine):
    with em.using(engine):
        layer = moe()
        weight = get(layer.router.weight)
        weight[1] = math.nan
        layer.update({"router.weight": put(weight), "router.bias": put([0.0, 9.0, 0.0, 0.0])})
        x = put(numbers(0, 20, D))
        ids, weights, _ = layer.router(x)
        assert not (ids.numpy() == 1).any() and np.isfinite(weights.numpy()).all()
        close(weights.sum(axis=-1), np.ones(20), 1e-6)
        with nn.training() as scope:
            assert np.isfinite(layer(x).numpy()).all()
        assert np.isfinite(scope.updates[id(layer.router), "bias"].numpy()).all()


@pytest.mark.parametrize("engine", ["torch", "mlx"])
def test_a_token_without_valid_logits_gets_zero(engine):
    with em.using(engine):
        layer = moe()
        layer.update({"router.weight": em.full((E, D), math.nan)})
        assert layer(put(numbers(0, 3, D))).tolist() == [[0.0] * D] * 3


@pytest.mark.parametrize("fields, message", [
    (dict(k=5), "expected k of at most num_experts = 4, received 5"),
    (dict(k=0), "k: expected a number of at least 1; received 0"),
    (dict(expert=3), "SparseMoEConfig: unknown key 'expert'; did you mean num_experts"),
    (dict(expert_config={"activation": "swish"}), "activation: expected 'identity'.*received 'swish'"),
])
def test_wrong_configs(fields, message):
    with em.using("numpy"), pytest.raises(ConfigError, match=message):
        moe(**fields)


def test_the_documents_spelling_of_the_config(backend):
    config = nn.moe.MoEConfig(D, E, "mlp", 1)
    block = nn.Block(D, layer="moe", moe_config=config, key=em.random.key(0))
    assert isinstance(block.layer, nn.SparseMoE) and block.layer.config == config


def test_a_layer_is_built_from_its_fields_by_name_and_by_place_or_from_its_config():
    with em.using("numpy"):
        made = [nn.SparseMoE(D, E, "mlp", 2), nn.SparseMoE(d_input=D, num_experts=E, expert_type="mlp", k=2), nn.SparseMoE(D, num_experts=E),
                nn.SparseMoE(nn.SparseMoEConfig(D, E)), nn.SparseMoE(config=nn.SparseMoEConfig(D, E)),
                nn.MixtureOfExperts(d_input=D, num_experts=E)]
        assert all(m.config == made[0].config for m in made[:5]) and made[5].config.num_experts == E
        with pytest.raises(ConfigError, match="k of at most num_experts = 4, received 5"):
            nn.SparseMoE(d_input=D, num_experts=E, k=5)
        for fields, match in (({"shared": -1}, "shared of at least 0, received -1"), ({"shared_gate": True}, "shared of at least 1 for shared_gate"),
                              ({"router_type": "top_p", "router_config": {"top_p": -0.5}}, "top_p above 0")):
            with pytest.raises(ConfigError, match=match):
                nn.SparseMoE(D, E, **fields)
