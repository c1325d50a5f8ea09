"""Routers against their formulas in NumPy, capacity, balance losses, bad input."""

import math

import numpy as np
import pytest

import ember_ml as em
from ember_ml import nn
from ember_ml.errors import ConfigError, RegistryError, ShapeError, UnsupportedDtype
from ember_ml.nn.moe import balance
from ember_ml.nn.moe.routing import routers
from ember_ml.nn.moe.routing.capacity import keep_within_capacity
from ember_ml.ops.moe.route import softmax_choice, softmax_weights
from ember_ml.registry import layers
from tests.nn._help import close, get, numbers, put

E = 8


def router(name, logits, **fields):
    """A router whose logits for the tokens x = identity are the rows of `logits`, and x."""
    logits = np.asarray(logits, np.float64)
    made = routers.instantiate(name, len(logits), logits.shape[1], key=em.random.key(0), **fields)
    made.update({"weight": put(logits.T)})
    return made, put(np.eye(len(logits)))


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def best(scores, k):
    return np.argsort(-scores, -1, kind="stable")[:, :k]


LOGITS = numbers(3, 12, E)


@pytest.mark.parametrize("normalize", [True, False])
def test_softmax_weights_before_and_after_the_choice(normalize, backend):
    made, x = router("softmax", LOGITS, k=3, normalize=normalize)
    ids, weights, complete = made(x)
    p, want = softmax(LOGITS), best(LOGITS, 3)
    w = np.take_along_axis(p, want, -1)
    assert complete and (ids.numpy() == want).all()
    close(weights, w / w.sum(-1, keepdims=True) if normalize else w, 1e-6)
    if normalize:                                          # the softmax over the chosen logits alone
        close(weights, softmax(np.take_along_axis(LOGITS, want, -1)), 1e-6)


@pytest.mark.parametrize("tokens, experts, k", [(7, 6, 5), (1100, 4, 3), (60, 80, 20)])
def test_choice_and_weights_of_logits_with_ties_and_what_is_not_finite(tokens, experts, k, backend):
    """Few scores, many scores and many slots, which engines sort or search; what is not finite comes last and weighs 0."""
    rng = np.random.default_rng(tokens)
    z = rng.normal(size=(tokens, experts)).round(1)
    z[rng.random(z.shape) < 0.3] = -np.inf
    z[0, :3], z[1] = (np.nan, np.inf, 0.5), -np.inf
    known = np.where(np.isfinite(z), z, -np.inf)
    e = np.exp(known)
    p = e / np.maximum(e.sum(-1, keepdims=True), 1e-30)
    logits = put(z).astype("float32")
    ids = softmax_choice(logits, put(np.zeros(experts)).astype("float32"), k=k)
    assert (ids.numpy() == best(known, k)).all()
    w = np.take_along_axis(p, best(known, k), -1)
    weights, scores = softmax_weights(logits, ids, normalize=True, eps=1e-20, scale=1.5)
    close(scores, p, 1e-6)
    close(weights, 1.5 * w / (w.sum(-1, keepdims=True) + 1e-20), 1e-6)


def test_sigmoid_with_groups_and_a_bias_that_only_chooses(backend):
    """Bias so negative that a mask of zeros would bring excluded groups back."""
    made, x = router("sigmoid", LOGITS, k=3, groups=4, topk_groups=2, scale=2.5, normalize=True)
    bias = numbers(5, E) * 0.3 - 1.0
    made.update({"bias": put(bias)})
    s = 1.0 / (1.0 + np.exp(-LOGITS))
    choice = s + bias
    group = np.sort(choice.reshape(-1, 4, 2), -1).sum(-1)
    is_open = np.zeros((len(s), 4), bool)
    np.put_along_axis(is_open, best(group, 2), True, -1)
    want = best(np.where(np.repeat(is_open, 2, -1), choice, -np.inf), 3)
    w = np.take_along_axis(s, want, -1)
    ids, weights, _ = made(x)
    assert (ids.numpy() == want).all()
    close(weights, 2.5 * w / w.sum(-1, keepdims=True), 1e-6)


def test_noise_only_in_training_and_by_the_softplus_of_its_own_weights(backend):
    made, x = router("noisy_topk", LOGITS, k=2)
    assert (made(x).ids.numpy() == best(LOGITS, 2)).all()
    with nn.training(em.random.key(1)):
        noisy = made(x)
    noise = get(em.random.normal(em.random.fold_in(em.random.key(1), 1), LOGITS.shape)) * math.log(2.0)   # softplus(0)
    assert (noisy.ids.numpy() == best(LOGITS + noise, 2)).all()
    close(noisy.weights, softmax(np.take_along_axis(LOGITS + noise, best(LOGITS + noise, 2), -1)), 1e-5)


@pytest.mark.parametrize("top_p", [0.3, 0.6, 0.95])
def test_top_p_takes_as_many_as_the_probability_asks_for(top_p, backend):
    made, x = router("top_p", LOGITS, k=5, top_p=top_p, normalize=False)
    ids, weights, complete = made(x)
    p = softmax(LOGITS)
    assert not complete
    for t, row in enumerate(p):
        order = best(row[None], E)[0]
        needed = min(int(np.searchsorted(np.cumsum(row[order]), top_p)) + 1, 5)
        assert ids.numpy()[t].tolist() == [*order[:needed], *[E] * (5 - needed)]
        close(weights[t], np.r_[row[order[:needed]], np.zeros(5 - needed)], 1e-6)


def test_experts_choose_their_tokens(backend):
    made, x = router("expert_choice", LOGITS, k=2)
    ids, weights, _ = made(x)
    p, capacity = softmax(LOGITS), math.ceil(len(LOGITS) * 2 / E)
    chosen = np.zeros_like(p, bool)
    np.put_along_axis(chosen, np.argsort(-p, 0, kind="stable")[:capacity], True, 0)
    assert chosen.sum(0).tolist() == [capacity] * E
    assert (ids.numpy() == np.where(chosen, np.arange(E), E)).all()
    close(weights, np.where(chosen, p, 0.0), 1e-6)


def test_positions_are_shared_out(backend):
    blocks = layers.instantiate("moe", 4, 3, "mlp", 1, router_type="position", router_config={"length": 6}, key=em.random.key(0))
    x = put(numbers(0, 2, 7, 4))
    f = get(blocks.experts(x.reshape(14, 4))).reshape(3, 2, 7, 4)
    close(blocks(x), np.stack([f[e, :, t] for t, e in enumerate([0, 0, 1, 1, 2, 2, 2])], 1), 1e-6)
    cyclic = layers.instantiate("moe", 4, 3, "mlp", 1, router_type="position", router_config={"scheme": "cyclic"})
    f = get(cyclic.experts(x.reshape(14, 4))).reshape(3, 2, 7, 4)
    close(cyclic(x), np.stack([f[t % 3, :, t] for t in range(7)], 1), 1e-6)
    with pytest.raises(ShapeError, match="positions are known"):
        cyclic.step(x[:, 0])


@pytest.mark.parametrize("drop", ["position", "score"])
def test_capacity_drops_by_the_stated_order(drop, backend):
    rng = np.random.default_rng(2)
    ids = np.stack([rng.permutation(4)[:2] for _ in range(20)]).astype(np.int32)
    weights = rng.random((20, 2)).astype(np.float32)
    got_ids, got = keep_within_capacity(em.tensor(ids), em.tensor(weights), 4, 0.6, drop)
    capacity, left = math.ceil(0.6 * 40 / 4), {e: 6 for e in range(4)}
    assert capacity == 6
    slots = [(t, k) for k in range(2) for t in range(20)] if drop == "position" else sorted(
        np.ndindex(20, 2), key=lambda at: -weights[at])
    want = np.full_like(ids, 4)
    for at in slots:
        if left[ids[at]]:
            left[ids[at]] -= 1
            want[at] = ids[at]
    assert (got_ids.numpy() == want).all()
    close(got, np.where(want < 4, weights, 0.0), 1e-7)


@pytest.mark.parametrize("fields", [
    dict(router_config={"capacity_factor": 0.7}), dict(router_type="top_p", router_config={"top_p": 0.5}),
    dict(router_type="expert_choice"), dict(router_type="sigmoid"), dict(router_type="noisy_topk")])
def test_the_layer_is_the_routing_s_sum(fields, backend):
    """Whatever the router: y = sum over slots of weight times expert, from the dense outputs."""
    layer = layers.instantiate("moe", 6, E, "mlp", 3, expert_config={"d_inner": 5}, key=em.random.key(1), **fields)
    x = put(numbers(0, 11, 6))
    ids, weights, _ = layer.router(x)
    f = np.concatenate([get(layer.experts(x)), np.zeros((1, 11, 6))])
    rows = f[ids.numpy(), np.arange(11)[:, None]]
    close(layer(x), (rows * get(weights)[..., None]).sum(1), 1e-5)
    _, grads = nn.value_and_grad(layer, lambda m: (m(x) * x).sum())(layer.parameters(), layer.buffers(), em.random.key(0))
    assert all(np.isfinite(g.numpy()).all() for g in grads.values()) and np.abs(get(grads["router.weight"])).max() > 1e-5


def test_losses_have_the_papers_scale(backend):
    even = put(np.full((12, E), 1.0 / E))
    assert balance.switch_loss(even, put(np.full(E, 3.0))).item() == pytest.approx(1.0)
    one = put(np.eye(E)[np.zeros(12, int)])
    assert balance.switch_loss(one, put(np.eye(E)[0] * 12)).item() == pytest.approx(E)
    z = LOGITS - LOGITS.mean()
    close(balance.z_loss(put(z)), np.mean(np.log(np.exp(z).sum(-1)) ** 2), 1e-5)
    close(balance.cv_squared(put([1.0, 2.0, 6.0])), np.var([1, 2, 6]) / 9.0, 1e-6)


def test_losses_reach_the_training_loss_with_their_gradient(backend):
    layer = layers.instantiate("moe", 6, E, "mlp", 2, expert_config={"d_inner": 5}, key=em.random.key(1),
                               router_config={"aux_loss": 0.5, "z_loss": 0.25, "balance_rate": 0.0})
    x = put(numbers(0, 30, 6))
    out, grads = nn.value_and_grad(layer, lambda m: (m(x) * 0.0).sum())(layer.parameters(), layer.buffers(), em.random.key(0))
    z = get(x) @ get(layer.router.weight).T
    p, n = softmax(z), np.bincount(best(z, 2).ravel(), minlength=E)
    aux, zl = 0.5 * E * (n / 60 * p.mean(0)).sum(), 0.25 * np.mean(np.log(np.exp(z).sum(-1)) ** 2)
    assert out.metrics["loss/moe_aux"].item() == pytest.approx(aux, rel=1e-5)
    assert out.metrics["loss/moe_z"].item() == pytest.approx(zl, rel=1e-5)
    assert np.abs(get(grads["router.weight"])).max() > 1e-4


@pytest.mark.parametrize("fields, error, message", [
    (dict(k=9), ConfigError, "expected k of at most num_experts = 8, received 9"),
    (dict(num_experts=0), ConfigError, "num_experts: expected a number of at least 1; received 0"),
    (dict(expert_type="mpl"), RegistryError, "unknown layer 'mpl': did you mean mlp"),
    (dict(router_type="sofmax"), RegistryError, "unknown router 'sofmax': did you mean softmax"),
    (dict(combiner_type="sum"), RegistryError, "unknown combiner 'sum'"),
    (dict(expert_type="layer_norm", level="sequence"), ConfigError, "expected level 'token'"),
    (dict(expert_type="hyena", expert_config={"l_max": 4}, combiner_type="concat"), ConfigError, "combiner_type 'weighted_sum'"),
    (dict(expert_config={"d_output": 3}), ConfigError, "or a combiner with an output layer; received experts with 3"),
    (dict(router_type="sigmoid", router_config={"groups": 3}), ConfigError, "expected groups to divide num_experts = 8"),
    (dict(router_type="sigmoid", router_config={"groups": 4, "topk_groups": 5}), ConfigError, "topk_groups of at most groups = 4"),
    (dict(router_config={"capacity_factor": 0.0}), ConfigError, "capacity_factor above 0, received 0.0"),
    (dict(router_config={"capacity_factor": math.nan}), ConfigError, "capacity_factor: expected a finite number; received nan"),
    (dict(router_config={"aux_loss": -1.0}), ConfigError, "aux_loss of at least 0, received -1.0"),
    (dict(router_config={"balance_rate": math.nan}), ConfigError, "balance_rate: expected a finite number; received nan"),
    (dict(router_type="top_p", router_config={"entropy_loss": math.inf}), ConfigError, "entropy_loss: expected a finite number; received inf"),
    (dict(router_config={"k": 3}), ConfigError, r"router_config without k, which follows from the layer's fields \(2\); received 3"),
    (dict(expert_config={"d_input": 5}), ConfigError, "expert_config without d_input"),
    (dict(combiner_type="concat", combiner_config={"slots": 5}), ConfigError, "combiner_config without slots"),
    (dict(router_type="position", router_config={"length": 4}), ConfigError, "expected k = 1"),
])
def test_bad_input_names_the_field(fields, error, message):
    with em.using("numpy"), pytest.raises(error, match=message):
        layers.instantiate("moe", **{"d_input": 6, "num_experts": 8, **fields})


def test_wrong_channels(backend):
    layer = layers.instantiate("moe", 6, 4)
    with pytest.raises(ShapeError, match=r"moe: expected x \(..., d_input\) with d_input = 6, got \(2, 5\)"):
        layer(em.zeros((2, 5)))


def test_input_that_is_no_tokens(backend):
    layer = layers.instantiate("moe", 6, 4)
    with pytest.raises(UnsupportedDtype, match="expected x of a floating-point dtype, got int32; cast it"):
        layer(em.zeros((2, 6), dtype="int32"))
    with pytest.raises(TypeError, match="expected x to be an EmberTensor, got ndarray"):
        layer(np.zeros((2, 6), np.float32))
    with pytest.raises(ShapeError, match=r"expected x \(batch, length, d_input\) for level 'sequence', got \(2, 6\)"):
        layers.instantiate("moe", 6, 4, "gru", level="sequence")(em.zeros((2, 6)))


@pytest.mark.parametrize("combiner", ["weighted_sum", "concat"])
def test_the_dense_mixture_by_position(combiner, backend):
    """The document's first principle: disjoint subsets of the input, all experts on one layer."""
    layer = layers.instantiate("mixture_of_experts", 4, 3, "mlp", "position", combiner, router_config={"scheme": "cyclic"},
                               key=em.random.key(0))
    x = put(numbers(0, 2, 7, 4))
    f = get(layer.experts(x.reshape(14, 4))).reshape(3, 2, 7, 4)
    if combiner == "concat":
        rows = np.stack([np.concatenate([f[e, :, t] * (e == t % 3) for e in range(3)], -1) for t in range(7)], 1)
        want = rows @ get(layer.combiner.out.weight).T + get(layer.combiner.out.bias)
    else:
        want = np.stack([f[t % 3, :, t] for t in range(7)], 1)
    close(layer(x), want, 1e-5)


@pytest.mark.parametrize("kind", ["expert_choice", "masked_softmax"])
def test_concatenation_where_all_experts_have_a_slot(kind, backend):
    layer = layers.instantiate("moe", 6, E, "mlp", 2, kind, "concat", key=em.random.key(1))
    x = put(numbers(0, 9, 6))
    ids, weights, _ = layer.router(x)
    rows = get(layer.experts(x))[np.minimum(ids.numpy(), E - 1), np.arange(9)[:, None]] * get(weights)[..., None]
    close(layer(x), rows.reshape(9, -1) @ get(layer.combiner.out.weight).T + get(layer.combiner.out.bias), 1e-5)


@pytest.mark.parametrize("fields", [dict(), dict(expert_type="gated_mlp"), dict(combiner_type="concat"), dict(router_type="top_p")])
@pytest.mark.parametrize("name", ["moe", "mixture_of_experts"])
def test_no_tokens_whatever_the_experts(name, fields, backend):
    layer, x = layers.instantiate(name, 6, E, **fields), em.zeros((2, 0, 6))
    assert layer(x).shape == (2, 0, 6)
    out, _ = nn.value_and_grad(layer, lambda m: m(x).sum())(layer.parameters(), layer.buffers(), em.random.key(0))
    assert out.loss.item() == 0.0


@pytest.mark.parametrize("router, losses", [
    ("softmax", {}), ("softmax", {"capacity_factor": 0.7}), ("sigmoid", {"groups": 2, "topk_groups": 2}), ("noisy_topk", {"importance_loss": 0.1}),
    ("top_p", {"entropy_loss": 0.1}), ("expert_choice", {}), ("masked_softmax", {})])
def test_a_compiled_step_with_every_loss_and_all_metrics(router, losses):
    """On MLX, whose compiler merges equal parts of a step."""
    pytest.importorskip("mlx.core", reason="MLX is not installed")
    with em.using("mlx"):
        _compiled_step_is_the_step(router, losses)


def _compiled_step_is_the_step(router, losses):
    layer = layers.instantiate("moe", 6, E, "mlp", 2, router, expert_config={"d_inner": 5}, key=em.random.key(1),
                               router_config={"aux_loss": 0.5, "z_loss": 0.25, "balance_rate": 0.01, **losses})
    run, x = nn.value_and_grad(layer, lambda m, x: (m(x) ** 2).mean()), put(numbers(0, 9, 6))

    def step(params, buffers, x):
        out, grads = run(params, buffers, em.random.key(0), x)
        return out.loss, grads, out.buffers, out.metrics

    want, got = (f(layer.parameters(), layer.buffers(), x) for f in (step, em.compile(step)))
    close(got[0], get(want[0]), 1e-5)
    assert got[3].keys() == want[3].keys() >= {"loss/moe_aux", "loss/moe_z", "router.load", "router.load_cv", "router.entropy"}
    for g, w in zip(got[1:], want[1:]):
        for name in w:
            close(g[name], get(w[name]), 1e-4)
