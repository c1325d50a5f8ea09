"""Kinds of experts, combiners, shared experts, and what training reports and learns."""

import numpy as np
import pytest

import ember_ml as em
from ember_ml import nn
from ember_ml.nn.moe import insight, token_classes
from ember_ml.nn.optimizers import SGD, SGDConfig
from ember_ml.registry import layers
from tests.nn._help import close, get, numbers, put, same_trees

D, E = 6, 4


def moe(**fields):
    return layers.instantiate("moe", D, E, key=em.random.key(1), **fields)


def picked(layer, x, f):
    """sum_k w_k f_{e_k} over slots, f (E, tokens, D) from each expert alone."""
    ids, weights, _ = layer.router(x)
    return (f[ids.numpy(), np.arange(len(f[0]))[:, None]] * get(weights)[..., None]).sum(1)


def test_gated_experts_are_the_formula(backend):
    layer = moe(expert_config={"d_inner": 5, "glu": True, "activation": "silu"})
    t, x = {n: get(v) for n, v in layer.tensors().items()}, numbers(0, 9, D)
    h = np.einsum("td,efd->etf", x, t["experts.w1"])
    a = h[..., :5] / (1.0 + np.exp(-h[..., :5])) * h[..., 5:]
    close(layer(put(x)), picked(layer, put(x), np.einsum("etf,edf->etd", a, t["experts.w2"])), 1e-5)
    assert "experts.b1" not in t


def test_tokens_and_weights_need_not_be_contiguous(backend):
    """Values and gradients of views (transposed, every second row) are those of their copies."""
    layer = moe(expert_config={"d_inner": 5, "glu": True, "activation": "silu"})
    plan = em.ops.moe_plan(put(np.array([[0, 2], [3, 1], [2, 3], [1, 0]]), "int32"), E)
    x, weights = numbers(0, D, 8), numbers(1, 2, 8)
    w1, w2 = layer.experts.w1, layer.experts.w2

    def views(x, weights, w1t, w2):
        return x.T[::2], weights.T[::2], em.ops.swap_axes(w1t), w2

    def loss(*given, as_they_are):
        x, weights, w1, w2 = (t if as_they_are else t * 1.0 + 0.0 for t in views(*given))
        return (em.ops.moe_mlp(x, weights, plan, w1, w2) ** 2).sum()

    given = put(x), put(weights), put(np.ascontiguousarray(get(w1).swapaxes(1, 2))), w2
    (y, grads), (want, wanted) = (em.value_and_grad(lambda *t: loss(*t, as_they_are=form), (0, 1, 2, 3))(*given) for form in (True, False))
    close(y, get(want), 1e-6)
    for got, expected in zip(grads, wanted):
        close(got, get(expected), 1e-5)


@pytest.mark.parametrize("tokens", [1, 4, 70])
@pytest.mark.parametrize("of", ["columns", "a row"])
def test_weights_may_be_views_of_any_strides(tokens, of, backend):
    """Rows that begin at odd multiples of four bytes, and one row for all, are what grouped products refuse to read."""
    ids = put(np.argsort(-numbers(3, tokens, E), 1)[:, :2], "int32")
    x, weights, w1, w2 = (put(numbers(i, *shape)) for i, shape in enumerate([(tokens, 8), (tokens, 2), (E, 8, 9), (E, 8, 5)]))

    def view(w):
        return w[:, :, :-1] if of == "columns" else em.ops.broadcast_to(w[:, :1, :-1], (*w.shape[:2], w.shape[2] - 1))

    def loss(x, w1, w2, as_they_are=True):
        w1, w2 = (view(w) if as_they_are else put(get(view(w))) for w in (w1, w2))
        return (em.ops.moe_mlp(x, weights, ids, w1, w2) ** 2).sum()

    want = get(loss(x, w1, w2, as_they_are=False))
    close(loss(x, w1, w2), want, 1e-5)
    (value, d_x), wanted = em.value_and_grad(loss)(x, w1, w2), em.grad(lambda x: loss(x, w1, w2, as_they_are=False))(x)
    close(value, want, 1e-5)
    close(d_x, get(wanted), 1e-5)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_slots_of_nobody_are_no_numbers_to_round(dtype, backend):
    """Memory that nothing was written to is full of what float16 cannot hold."""
    filled = [np.full(9 * 2 * 10 * 4, np.nan, np.float32) for _ in range(8)]
    del filled
    plan = em.ops.moe_plan(put(np.full((9, 2), E), "int32"), E, complete=False)
    given = [put(numbers(i, *shape)).astype(dtype) for i, shape in enumerate([(9, D), (E, 10, D), (E, D, 5)])]
    weights = put(numbers(3, 9, 2))
    value, grads = em.value_and_grad(lambda x, w1, w2: em.ops.moe_mlp(x, weights, plan, w1, w2).sum(), (0, 1, 2))(*given)
    assert value.item() == 0.0 and not any(get(g.astype("float32")).any() for g in grads)


@pytest.mark.parametrize("kind, config", [("dense", {}), ("mlp", {"d_inner": 3}), ("gated_mlp", {})])
def test_any_channel_mixer_is_an_expert(kind, config, backend):
    layer = moe(expert_type=kind, expert_config=config)
    x = put(numbers(0, 9, D))
    one = layer.experts(x) if kind == "mlp" else em.ops.stack([e(x) for e in layer.experts.experts])
    close(layer(x), picked(layer, x, get(one)), 1e-5)


@pytest.mark.parametrize("kind, config", [("transformer", {"heads": 2, "d_inner": 5}), ("hyena", {"l_max": 7, "filter": {"width": 8}}),
                                          ("gru", {})])
def test_sequence_experts_parallel_and_by_step(kind, config, backend):
    """Each expert sees the sequence; tokens choose whose output they take. Step by step it is the same."""
    layer = moe(expert_type=kind, expert_config=config)
    x = put(numbers(0, 2, 7, D))
    y, state = layer(x)
    f = np.stack([get(e(x)[0]) for e in layer.experts.experts]).reshape(E, 14, D)
    close(y.reshape(14, D), picked(layer, x.reshape(14, D), f), 1e-5)
    assert state is None and layer.mixes_sequence
    state, out = layer.initial_state(2), []
    for t in range(7):
        step, state = layer.step(x[:, t], state)
        out.append(get(step))
    close(np.stack(out, 1), get(y), 1e-4)


def test_whole_sequences_are_routed_by_their_mean(backend):
    layer = moe(expert_type="gru", level="sequence", k=1)
    x = put(numbers(0, 5, 7, D))
    y, _ = layer(x)
    ids, weights, _ = layer.router(x.mean(axis=1))
    want = [get(layer.experts.experts[e](x[b:b + 1])[0])[0] * w for b, (e, w) in enumerate(zip(ids.numpy()[:, 0], get(weights)[:, 0]))]
    close(y, np.stack(want), 1e-5)


def test_shared_experts_work_on_every_token(backend):
    layer = moe(shared=2, shared_gate=True, expert_config={"d_inner": 3})
    x = put(numbers(0, 9, D))
    alone = picked(layer, x, get(layer.experts(x)))
    gate = 1.0 / (1.0 + np.exp(-get(layer.shared_gate(x))))
    close(layer(x), alone + gate * get(layer.shared(x)).sum(0), 1e-5)


def test_concatenation_keeps_experts_apart_until_the_output_layer(backend):
    layer = moe(combiner_type="concat", expert_config={"d_inner": 3, "d_output": 2}, k=3)
    x = put(numbers(0, 9, D))
    ids, weights, _ = layer.router(x)
    rows = get(layer.experts(x))[ids.numpy(), np.arange(9)[:, None]] * get(weights)[..., None]
    t = {n: get(v) for n, v in layer.tensors().items()}
    close(layer(x), rows.reshape(9, 6) @ t["combiner.out.weight"].T + t["combiner.out.bias"], 1e-5)


@pytest.mark.parametrize("combiner", ["weighted_sum", "concat"])
@pytest.mark.parametrize("router", ["softmax", "sigmoid"])
def test_sparse_with_all_experts_is_dense(router, combiner, backend):
    fields = dict(router_type=router, combiner_type=combiner, expert_config={"d_inner": 5})
    sparse = moe(k=E, **fields)
    dense = layers.instantiate("mixture_of_experts", D, E, key=em.random.key(1), **fields)
    x = put(numbers(0, 9, D))
    if combiner == "weighted_sum":                         # concatenation orders slots by score, the dense one by expert
        close(sparse(x), dense(x), 1e-5)
    assert dense(x).shape == (9, D)


def test_a_second_gradient_goes_through_the_parts(backend):
    layer = moe(expert_config={"d_inner": 3, "activation": "tanh"}, router_config={"balance_rate": 0.0})
    x, v = put(numbers(0, 3, D)), put(numbers(1, 3, D))
    slope = em.grad(lambda x: (em.grad(lambda x: (layer(x) ** 2).sum())(x) * v).sum())
    h = 1e-2
    g = [get(em.grad(lambda x: (layer(x) ** 2).sum())(put(numbers(0, 3, D) + s * h * numbers(1, 3, D)))) for s in (1, -1)]
    close(slope(x), (g[0] - g[1]) / (2 * h), 2e-3)


def test_insight_is_what_it_says(backend):
    ids = np.array([[0, 1], [0, 2], [1, 0], [4, 4]], np.int32)
    close(insight.load(em.tensor(ids), E), [3, 2, 1, 0], 0)
    close(insight.coactivation(em.tensor(ids), E), np.array([[3, 2, 1, 0], [2, 2, 0, 0], [1, 0, 1, 0], [0] * 4]) / 4, 1e-6)
    table = insight.by_class(em.tensor(ids), E, em.tensor(np.array([0, 1, 1, 0], np.int32)), 2)
    close(table, [[1, 2], [1, 1], [0, 1], [0, 0]], 0)
    assert insight.mutual_information(put(np.eye(3) * 5)).item() == pytest.approx(1.0, abs=1e-6)
    assert insight.mutual_information(put(np.ones((3, 4)))).item() == pytest.approx(0.0, abs=1e-6)
    p = numbers(0, 5, 4) ** 2
    q = p / p.sum(1, keepdims=True)
    close(insight.entropy(put(p)), -(q * np.log(q)).sum(1).mean() / np.log(4), 1e-5)


def test_training_reports_them_at_their_place(backend):
    layer = moe(expert_config={"d_inner": 3})
    x, labels = put(numbers(0, 20, D)), em.tensor(np.arange(20, dtype=np.int32) % 3)

    def loss(m):
        with token_classes(labels, 3):
            return (m(x) ** 2).mean()

    out, _ = nn.value_and_grad(layer, loss)(layer.parameters(), layer.buffers(), em.random.key(0))
    ids = layer.router(x).ids.numpy()
    n = np.bincount(ids.ravel(), minlength=E)
    close(out.metrics["router.load"], n / 40, 1e-6)
    assert out.metrics["router.dead"].item() == pytest.approx((n == 0).mean())
    assert get(out.metrics["router.classes"]).sum(0).tolist() == [14.0, 14.0, 12.0]
    assert get(out.metrics["router.coactivation"]).trace() == pytest.approx(2.0)
    assert {"router.load_cv", "router.entropy", "router.information"} <= set(out.metrics)


def target(seed, count):
    """Tokens of two kinds, each with a linear map of its own, and an output mixing that the experts alone cannot make."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, D))
    maps = np.random.default_rng(99).normal(size=(2, D, D))
    return x, np.where(x[:, :1] > 0, x @ maps[0], x @ maps[1])


def train(layer, steps, frozen=(), rate=0.05, watch=None):
    """Losses of plain SGD on the two-kinds task; `frozen` parameters stay."""
    if frozen:
        layer.freeze(*frozen)
    optimizer = SGD(SGDConfig(rate))
    params, buffers, losses = layer.parameters(trainable=True), layer.buffers(), []
    state = optimizer.init(params)
    run = nn.value_and_grad(layer, lambda m, x, y: ((m(x) - y) ** 2).mean())
    for i in range(steps):
        x, y = (put(a) for a in target(i, 64))
        out, grads = run(params, buffers, em.random.key(i), x, y)
        params, state = optimizer.update(params, grads, state)
        buffers = out.buffers
        losses.append(out.loss.item())
        if watch is not None:
            watch.append({n: v for n, v in out.metrics.items()})
    return np.array(losses)


def test_joint_training_of_the_output_layer_pays():
    """Narrow experts and an output layer: learned together they fit what experts under a fixed random one cannot."""
    fields = dict(combiner_config={"output_layer": True}, expert_config={"d_inner": 16}, k=2)
    with em.using("numpy"):
        joint = train(moe(**fields), 250)
        fixed = train(moe(**fields), 250, frozen=("combiner.out.*",))
    assert joint[-30:].mean() < 0.8 * fixed[-30:].mean()


def test_routing_weights_that_adjust_balance_the_load():
    """The bias moves against the load while training goes on: the load evens out, and the loss does not suffer."""
    with em.using("numpy"):
        seen, losses = {}, {}
        for rate in (0.0, 0.01):
            seen[rate] = []
            layer = moe(k=1, expert_config={"d_inner": 16}, router_config={"balance_rate": rate})
            skew = get(layer.router.weight)
            skew[0] += 1.5 * np.sign(skew[0])
            layer.update({"router.weight": put(skew)})
            losses[rate] = train(layer, 250, watch=seen[rate])
    cv = {rate: np.mean([m["router.load_cv"].item() for m in rows[-30:]]) for rate, rows in seen.items()}
    assert cv[0.01] < 0.5 * cv[0.0]
    assert losses[0.01][-30:].mean() < 1.1 * losses[0.0][-30:].mean()


def test_mlx_computes_the_same_in_a_compiled_step_and_outside():
    """Outside, without a GPU, it is NumPy's loop on MLX's memory; inside, grouped products. Also where MLX differentiates by itself."""
    mx = pytest.importorskip("mlx.core", reason="MLX is not installed")
    with em.using("mlx"):
        plan_ids = put(np.argsort(-numbers(0, 19, E), 1)[:, :2], "int32")
        given = [put(numbers(i, *shape)) for i, shape in enumerate([(19, D), (19, 2), (E, 10, D), (E, D, 5), (E, 10), (E, D)], 1)]

        def y(x, weights, w1, w2, b1, b2, ids):
            return em.ops.moe_mlp(x, weights, em.ops.moe_plan(ids, E), w1, w2, b1, b2)

        both = em.value_and_grad(lambda *t: (y(*t) ** 2).sum(), tuple(range(6)))
        (value, grads), (want, wanted) = both(*given, plan_ids), em.compile(both)(*given, plan_ids)
        close(value, get(want), 1e-6)
        for got, expected in zip(grads, wanted):
            close(got, get(expected), 1e-5)
        for i in range(6):                                 # one is recorded, the others are there already
            def one(t, i=i):
                return both(*given[:i], t, *given[i + 1:], plan_ids)[1][i]
            close(em.compile(one)(given[i]), get(grads[i]), 1e-5)
        close(em.compile(lambda ids: y(*given, ids))(plan_ids), get(y(*given, plan_ids)), 1e-5)
        out, pullback = em.autodiff.vjp(lambda *t: y(*t, plan_ids), *given)
        for got, expected in zip(em.compile(pullback)(2.0 * out), grads):
            close(got, get(expected), 1e-5)
        native = mx.grad(lambda x: (y(type(given[0])(x, given[0].backend), *given[1:], plan_ids) ** 2).sum().data)(given[0].data)
        close(np.array(native), get(grads[0]), 1e-6)
