"""torch's activations, losses, convolutions, attention module and the feature extractor."""

from __future__ import annotations

import math

import ember_ml as em
from ember_ml import ops
from ember_ml.nn import losses
from ember_ml.nn.layers import FeatureExtraction, FeatureExtractionConfig, GroupNorm, GroupNormConfig
from tests.golden.case import Built, Case, Tensors, builder, with_weights

ACTIVATIONS = {"gelu_erf": ops.gelu, "gelu_tanh": ops.gelu_tanh, "silu": ops.silu, "softplus": ops.softplus, "logsigmoid": ops.log_sigmoid,
               "elu": ops.elu, "selu": ops.selu, "mish": ops.mish, "hardswish": ops.hard_swish, "leaky_relu": lambda x: ops.leaky_relu(x, 0.1),
               "softmax": ops.softmax, "log_softmax": ops.log_softmax, "glu": ops.glu, "relu_squared": ops.relu_squared,
               "softsign": ops.softsign, "hardsigmoid": ops.hard_sigmoid, "relu6": ops.relu6, "tanhshrink": ops.tanh_shrink, "erf": ops.erf,
               # torch's softplus is x itself above threshold / beta
               "softplus_beta2_threshold5": lambda x: ops.where(x > 2.5, x, ops.softplus(x * 2.0) / 2.0)}


@builder("torch/activations")
def activations(case: Case, dtype: str) -> Built:
    """Every function of x."""
    return Built(lambda x, _p: {name: ACTIVATIONS[name](x["x"]) for name in case.expected}, case.params(dtype))


@builder("torch/losses")
def loss_functions(case: Case, dtype: str) -> Built:
    """Classes, some ignored, weighted or smoothed; numbers; probabilities."""
    def forward(x: Tensors, _p: Tensors) -> Tensors:
        logits, labels, a, b = x["logits"], x["target"], x["pred"], x["truth"]
        rows = ops.cross_entropy(logits, labels, -100)
        return {"cross_entropy": losses.cross_entropy(logits, labels, -100), "cross_entropy_sum": rows.sum(), "cross_entropy_none": rows,
                "cross_entropy_weighted": losses.cross_entropy(logits, labels, -100, x["class_weight"]),
                "cross_entropy_smoothed": losses.cross_entropy(logits, labels, -100, smoothing=0.1),
                "mse": losses.mse(a, b), "l1": losses.mae(a, b), "huber": losses.huber(a, b, 0.7), "smooth_l1": losses.smooth_l1(a, b, 0.7),
                "bce_with_logits": losses.binary_cross_entropy(a, x["binary"])}

    return Built(forward, case.params(dtype))


@builder("torch/conv1d")
def conv1d(case: Case, dtype: str) -> Built:
    """Cross-correlation with stride, dilation and groups."""
    c = case.config

    def forward(x: Tensors, p: Tensors) -> Tensors:
        return {"y": ops.conv1d(x["x"], p["weight"], p.get("bias"), stride=c["stride"], padding=c["padding"], dilation=c["dilation"],
                                groups=c["groups"])}

    return Built(forward, case.params(dtype))


@builder("torch/groupnorm")
def groupnorm(case: Case, dtype: str) -> Built:
    """torch's statistics run over positions, too: as channels, all positions of a channel side by side, they are Ember's."""
    c = case.config
    module = GroupNorm(GroupNormConfig(c["dim"] * c["L"], c["eps"], groups=c["groups"]))

    def forward(x: Tensors, p: Tensors) -> Tensors:
        with with_weights(module, {name: ops.repeat(w, c["L"], axis=0) for name, w in p.items()}):
            return {"y": ops.reshape(module(ops.reshape(x["x"], (c["batch"], -1))), x["x"].shape)}

    return Built(forward, case.params(dtype))


@builder("torch/multihead_attention")
def multihead_attention(case: Case, dtype: str) -> Built:
    """Queries, keys and values of their own; plain, causal, with ignored keys, with a bias on the scores; the weights of two of them."""
    c = case.config
    width = c["embed_dim"] // c["num_heads"]

    def heads(x, p, i, name):
        whole = p.get("in_proj_weight")
        weight = p[f"{name}_proj_weight"] if whole is None else ops.split(whole, 3, axis=0)[i]
        y = ops.linear(x, weight, ops.split(p["in_proj_bias"], 3, axis=0)[i] if c["bias"] else None)
        return ops.permute_dims(ops.reshape(y, (*y.shape[:2], c["num_heads"], width)), (0, 2, 1, 3))

    def forward(x: Tensors, p: Tensors) -> Tensors:
        q, k, v = (heads(x[name], p, i, name[0]) for i, name in enumerate(("query", "key", "value")))

        def out(**fields):
            y = ops.permute_dims(ops.scaled_dot_product_attention(q, k, v, **fields), (0, 2, 1, 3))
            return ops.linear(ops.reshape(y, (*y.shape[:2], c["embed_dim"])), p["out_proj.weight"], p.get("out_proj.bias"))

        scores = ops.matmul(q, ops.swap_axes(k)) * (1.0 / math.sqrt(width))
        kept = ops.reshape(ops.logical_not(x["key_padding_mask"]), (c["batch"], 1, 1, c["S"]))
        return {"y": out(), "weights": ops.softmax(scores), "y_causal": out(causal=True), "y_padded": out(mask=kept),
                "y_bias": out(mask=x["attn_bias"]), "weights_bias_mean": ops.softmax(scores + x["attn_bias"]).mean(axis=1)}

    return Built(forward, case.params(dtype))


@builder("torch/feature_extractor")
def feature_extractor(case: Case, dtype: str) -> Built:
    """Two convolutions, then an LSTM from nothing; its last state comes from a second run of it on the features."""
    c = case.config
    module = FeatureExtraction(FeatureExtractionConfig(c["in_channels"], [c["conv1_channels"], c["conv2_channels"]], c["hidden_size"]),
                               key=em.random.key(0))

    def forward(x: Tensors, p: Tensors) -> Tensors:
        named = {f"convs.{i - 1}.{part}": p[f"conv{i}.{part}"] for i in (1, 2) for part in ("weight", "bias")}
        named |= {f"recurrent.{part}": p[f"lstm.{part}_l0"] for part in ("weight_ih", "weight_hh")}
        named["recurrent.bias"] = p["lstm.bias_ih_l0"] + p["lstm.bias_hh_l0"]
        with with_weights(module, named):
            y, _ = module(x["x"])
            features, _ = module.features(x["x"])
            _, last = module.recurrent(features, module.recurrent.initial_state(c["batch"], dtype))
        return {"y": y, "conv_features": features, "hn": ops.expand_dims(last["h"], 0), "cn": ops.expand_dims(last["c"], 0)}

    return Built(forward, case.params(dtype))
