"""Channel mixers, norms and residuals against float64 NumPy. A layer that is registered without a row here fails."""

import math

import numpy as np
import pytest

import ember_ml as em
from ember_ml import nn
from ember_ml.errors import ConfigError, ShapeError
from ember_ml.nn.layers.activations import ACTIVATIONS
from ember_ml.registry import layers
from tests.nn._help import close, get, numbers, put, tensors64

D = 6
_erf = np.vectorize(math.erf)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


ACTIVATION = {
    "identity": lambda x: x, "relu": lambda x: np.maximum(x, 0), "sigmoid": sigmoid, "tanh": np.tanh,
    "silu": lambda x: x * sigmoid(x), "gelu": lambda x: x * (1 + _erf(x / math.sqrt(2))) / 2,
    "relu_squared": lambda x: np.maximum(x, 0) ** 2, "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "selu": lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(np.minimum(x, 0))),
    "mish": lambda x: x * np.tanh(np.log1p(np.exp(x))), "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "hard_swish": lambda x: x * np.clip(x + 3, 0, 6) / 6, "softsign": lambda x: x / (1 + np.abs(x)),
    "gelu_tanh": lambda x: x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3))),
}


def dense(t, x, at=""):
    return x @ t[f"{at}weight"].T + t.get(f"{at}bias", 0.0)


def glu(t, x, activation="sigmoid", at=""):
    return ACTIVATION[activation](dense(t, x, f"{at}gate.")) * dense(t, x, f"{at}up.")


def gated_mlp(t, x, inner, activation="silu"):
    assert t["down.weight"].shape == (D, inner)
    return dense(t, glu(t, x, activation, "glu."), "down.")


def mlp(t, x, activation="gelu_tanh"):
    return dense(t, ACTIVATION[activation](dense(t, x, "fc1.")), "fc2.")


def block_diagonal(t, x, blocks):
    return np.concatenate([part @ w.T for part, w in zip(np.split(x, blocks, -1), t["weight"], strict=True)], -1)


def layer_norm(t, x, eps=1e-5, offset=0.0):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * (offset + t["weight"]) + t.get("bias", 0.0)


def rms_norm(t, x, eps=1e-5, offset=0.0):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * (offset + t["weight"])


def group_norm(t, x, groups, eps=1e-5):
    parts = [layer_norm({"weight": 1.0}, part, eps) for part in np.split(x, groups, -1)]
    return np.concatenate(parts, -1) * t["weight"] + t.get("bias", 0.0)


def experts(t, x, activation):
    """f_e(x), (E, ..., D)."""
    hidden = np.einsum("efd,...d->e...f", t["experts.w1"], x) + t["experts.b1"].reshape(-1, *[1] * (x.ndim - 1),
                                                                                       t["experts.b1"].shape[-1])
    out = np.einsum("edf,e...f->e...d", t["experts.w2"], ACTIVATION[activation](hidden))
    return out + t["experts.b2"].reshape(-1, *[1] * (x.ndim - 1), D)


def moe(t, x, k=2, activation="gelu_tanh"):
    """Token by token, expert by expert."""
    z = x @ t["router.weight"].T
    p = np.exp(z - z.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    f, y = experts(t, x, activation), np.zeros_like(x)
    for at in np.ndindex(x.shape[:-1]):
        chosen = sorted(range(p.shape[-1]), key=lambda e: (-(p[at] + t["router.bias"])[e], e))[:k]
        total = p[at][chosen].sum() if k > 1 else 1.0
        for e in chosen:
            y[at] += p[at][e] / total * f[(e, *at)]
    return y


#: name -> [(config without d_input, reference of (tensors, x))]
MIXERS = {
    "block_diagonal": [({"blocks": D}, lambda t, x: block_diagonal(t, x, D)), ({}, lambda t, x: block_diagonal(t, x, 1))],
    "dense": [({}, dense), ({"d_output": 4}, dense), ({"bias": False}, dense)],
    "gated_linear": [({}, glu), ({"d_output": 4, "activation": "silu", "bias": False}, lambda t, x: glu(t, x, "silu"))],
    "gated_mlp": [({}, lambda t, x: gated_mlp(t, x, 16)), ({"multiple_of": 5}, lambda t, x: gated_mlp(t, x, 20)),
                  ({"d_inner": 7, "activation": "gelu", "bias": True}, lambda t, x: gated_mlp(t, x, 7, "gelu"))],
    "mlp": [({}, mlp), ({"bias": False}, mlp), ({"d_inner": 5, "activation": "relu"}, lambda t, x: mlp(t, x, "relu"))],
    "layer_norm": [({}, layer_norm), ({"eps": 0.5, "bias": False, "unit_offset": True},
                                        lambda t, x: layer_norm(t, x, 0.5, 1.0))],
    "rms_norm": [({}, rms_norm), ({"eps": 0.5, "unit_offset": True}, lambda t, x: rms_norm(t, x, 0.5, 1.0)),
                 ({"bias": True}, lambda t, x: rms_norm(t, x) + t["bias"]),
                 ({"groups": 3}, lambda t, x: np.concatenate([rms_norm({"weight": 1.0}, part) for part in np.split(x, 3, -1)], -1) * t["weight"]),
                 ({"eps": 0.5, "eps_outside": True},
                  lambda t, x: x / (np.sqrt((x * x).mean(-1, keepdims=True)) + 0.5) * t["weight"])],
    "group_norm": [({"groups": 2}, lambda t, x: group_norm(t, x, 2)),
                   ({"groups": 3, "eps": 0.5, "bias": False}, lambda t, x: group_norm(t, x, 3, 0.5))],
    "dropout": [({"p": 0.5}, lambda t, x: x)],
    "mixture_of_experts": [({"num_experts": 3, "expert_config": {"d_inner": 5, "activation": "silu"}}, lambda t, x: moe(t, x, 3, "silu"))],
    "moe": [({"num_experts": 4, "expert_config": {"d_inner": 5}}, moe),
            ({"num_experts": 3, "expert_config": {"d_inner": 4}, "k": 1}, lambda t, x: moe(t, x, 1))],
}
RESIDUALS = {
    "residual": [({}, lambda t, x, y: x + y), ({"alpha": 0.5, "beta": 2.0}, lambda t, x, y: 0.5 * x + 2.0 * y)],
    "feedforward_residual": [({}, lambda t, x, y: y)],
    "affine_residual": [({"depth": 4}, lambda t, x, y: x + t["affine"] * y),
                        ({"depth": 2, "scalar": True, "alpha": 0.3}, lambda t, x, y: 0.3 * x + t["affine"][0] * y)],
    "highway_residual": [({}, lambda t, x, y: highway(t, x, y)),
                         ({"scaling_correction": True}, lambda t, x, y: highway(t, x, y, 1.732)),
                         ({"elementwise": True}, lambda t, x, y: highway({**t, "Wy.weight": np.diag(t["Wy"]), "Wy.bias": 0.0}, x, y))],
    "decay_residual": [({"depth": 1}, lambda t, x, y: y),
                       ({"depth": 4}, lambda t, x, y: math.sqrt(0.75) * x + 0.5 * y),
                       ({"depth": 4, "power": 1.0, "l2": False}, lambda t, x, y: 0.75 * x + 0.25 * y)],
}


def cases(table):
    return [pytest.param(n, c, f, id=f"{n}-{i}") for n, rows in table.items() for i, (c, f) in enumerate(rows)]


def highway(t, x, y, kept=1.0):
    z = y @ t["Wy.weight"].T + t["Wy.bias"]
    r = sigmoid(x @ t["Wx.weight"].T + t["Wx.bias"] + z)
    return kept * (1 - r) * x + r * z


def build(name, fields):
    """The layer with all tensors away from their special initial values (ones, zeros)."""
    layer = layers.instantiate(name, D, key=em.random.key(0), **fields)
    layer.update({k: put(get(t) + 0.1 * numbers(i, *t.shape)) for i, (k, t) in enumerate(layer.tensors().items())})
    return layer


def test_every_layer_has_a_row():
    mixers = [n for n in layers.names() if getattr(layers.get(n), "mixes_sequence", None) is False]
    residuals = [n for n in layers.names() if not hasattr(layers.get(n), "mixes_sequence")]
    assert sorted(MIXERS) == mixers and sorted([*RESIDUALS, "pool"]) == residuals
    assert sorted(ACTIVATION) == sorted(ACTIVATIONS)


@pytest.mark.parametrize("name, fields, reference", cases(MIXERS))
@pytest.mark.parametrize("lead", [(2, 5), (3,), (1, 1)])
def test_against_numpy(name, fields, reference, lead, backend):
    layer = build(name, fields)
    x = numbers(9, *lead, D)
    want = reference(tensors64(layer), x)
    y = layer(put(x))
    close(y, want, 1e-5, name)
    assert y.dtype is em.float32 and layer.step(put(x)).tolist() == y.tolist()


@pytest.mark.parametrize("name, fields, reference", cases(MIXERS))
def test_gradients_against_central_differences(name, fields, reference, backend):
    """The slope of the NumPy reference along one direction through all parameters and x, against our gradient."""
    layer = build(name, fields)
    x, t = numbers(9, 2, 5, D), tensors64(layer)
    w = numbers(8, *reference(t, x).shape)

    def loss(params, x):
        with layer.using(params):
            return (layer(x) * put(w)).sum()

    grads, dx = em.grad(loss, (0, 1))(layer.parameters(), put(x))
    along = {k: numbers(20 + i, *t[k].shape) for i, k in enumerate(grads)}
    along_x, h = numbers(19, *x.shape), 1e-6

    def at(s):
        return (reference({**t, **{k: t[k] + s * along[k] for k in grads}}, x + s * along_x) * w).sum()

    want = (at(h) - at(-h)) / (2 * h)
    parts = [(get(grads[k]) * along[k]).sum() for k in grads] + [(get(dx) * along_x).sum()]
    assert sum(parts) == pytest.approx(want, abs=2e-5 * sum(map(abs, parts)))


@pytest.mark.parametrize("name, fields, reference", cases(RESIDUALS))
def test_residuals_against_numpy(name, fields, reference, backend):
    layer = build(name, fields)
    x, y = numbers(1, 2, 3, D), numbers(2, 2, 3, D)
    close(layer(put(x), put(y)), reference(tensors64(layer), x, y), 1e-5)


def test_affine_residual_starts_weaker_in_the_depth(backend):
    layer = layers.instantiate("affine_residual", D, depth=4)
    assert layer.affine.tolist() == [0.5] * D
    assert layers.instantiate("affine_residual", D, depth=4, gamma=1.0, beta=2.0, scalar=True).affine.tolist() == [0.5]


def test_a_row_of_zeros_has_a_finite_gradient_under_the_norm_with_eps_outside(backend):
    layer = layers.instantiate("rms_norm", D, eps_outside=True)
    x = put(np.stack([np.zeros(D), numbers(0, D)]))
    grads = get(em.grad(lambda x: (layer(x) * 2.0).sum())(x))
    assert np.isfinite(grads).all() and not grads[0].any() and np.abs(grads[1]).max() > 0


@pytest.mark.parametrize("name", ["layer_norm", "rms_norm", "group_norm"])
def test_norms_start_with_a_factor_of_one(name, backend):
    x = put(numbers(0, 3, D))
    a, b = (layers.instantiate(name, D, unit_offset=offset)(x) for offset in (False, True))
    close(a, get(b), 1e-6)


def test_groups_must_divide_the_channels():
    with pytest.raises(ConfigError, match="group_norm: expected groups to divide d_input = 6, received 4"):
        layers.instantiate("group_norm", D, groups=4)


def test_activations_against_numpy(backend):
    x = np.concatenate([numbers(0, 50) * 3, [0.0, 20.0, -20.0]])
    for name, fn in ACTIVATIONS.items():
        close(fn(put(x)), ACTIVATION[name](x), 1e-6, name)


def test_embedding_and_its_tied_head(backend):
    table = nn.layers.Embedding(nn.layers.EmbeddingConfig(7, D, std=0.5), key=em.random.key(0))
    tokens, weight = np.array([[0, 6, 3], [3, 3, 1]]), get(table.weight)
    close(table(put(tokens, "int32")), weight[tokens], 0.0)
    x = numbers(0, 2, 3, D)
    close(table.as_head(put(x)), x @ weight.T, 1e-6)
    grads = em.grad(lambda w: _through(table, w, put(tokens, "int32"), put(x)))(table.weight)
    want = np.zeros_like(weight)
    np.add.at(want, tokens, x)
    close(grads, want, 1e-6)


def _through(table, weight, tokens, x):
    with table.using({"weight": weight}):
        return (table(tokens) * x).sum()


def test_widths_must_fit(backend):
    layer = layers.instantiate("dense", D)
    with pytest.raises(ShapeError, match=rf"linear: expected x of shape \(..., d_in\) = \(..., {D}\), got \(2, 5\)"):
        layer(em.ones((2, 5)))
