"""MAD-Lab's mixtures of experts: dense projections whose output channels are dealt out to experts, mixed by a masked softmax."""

from __future__ import annotations

from ember_ml import ops
from ember_ml.nn.layers import Dense, DenseConfig
from ember_ml.nn.moe.routing import MaskedSoftmaxRouter, SoftmaxRouterConfig
from tests.golden.case import Built, Case, Tensors, builder, with_weights
from tests.golden.mad_hyena import hyena_layer, hyena_layer_weights


def _mixed(c: dict, x, z, p: Tensors):
    """(sum over experts of their channels of z times their weight, the router's logits); the expert is z's last axis."""
    router = MaskedSoftmaxRouter(SoftmaxRouterConfig(c["dim"], c["num_experts"], c["active_experts"], linear_bias=True))
    tokens = ops.reshape(x, (-1, c["dim"]))
    named = {"weight": p["router.weight"], "linear_bias": p["router.bias"], "bias": router.bias}
    with with_weights(router, named):
        weights, (logits, _) = router.mixture(tokens), router.logits(tokens)
    z = ops.reshape(z, (tokens.shape[0], -1, c["num_experts"]))
    y = (z * ops.expand_dims(weights, 1)).sum(axis=-1)
    return ops.reshape(y, (*x.shape[:-1], -1)), ops.reshape(logits, (*x.shape[:-1], c["num_experts"]))


@builder("mad/moe_mlp")
def moe_mlp(case: Case, dtype: str) -> Built:
    """down1(up1(x) gelu_tanh(up2(x))), all experts in one pair of projections."""
    c = case.config
    inner = c["dim_inner"] * c["num_experts"]
    up1, up2 = Dense(DenseConfig(c["dim"], inner)), Dense(DenseConfig(c["dim"], inner))
    down = Dense(DenseConfig(inner, c["dim"] * c["num_experts"]))

    def forward(x: Tensors, p: Tensors) -> Tensors:
        def of(layer, name, given):
            with with_weights(layer, {part: p[f"{name}.{part}"] for part in ("weight", "bias")}):
                return layer(given)

        z = of(down, "down1", of(up1, "up1", x["x"]) * ops.gelu_tanh(of(up2, "up2", x["x"])))
        y, scores = _mixed(c, x["x"], z, p)
        return {"y": y, "router_scores": scores}

    return Built(forward, case.params(dtype))


@builder("mad/hyena_experts")
def hyena_experts(case: Case, dtype: str) -> Built:
    """Hyena up to its output projection, whose channels are dealt out to experts; Ember's own projection is the identity here."""
    c = {"proj_groups": 1, **case.config}
    module, out = hyena_layer(c), Dense(DenseConfig(c["dim_inner"], c["dim"]))

    def forward(x: Tensors, p: Tensors) -> Tensors:
        whole = ops.one_hot(ops.arange(c["dim"]), c["dim"], dtype=dtype)
        own = {**p, "out_proj.weight": whole, "out_proj.bias": whole[0] * 0.0}
        with with_weights(module, hyena_layer_weights(module, own)):
            z = module(x["x"])[0]
        y, scores = _mixed(c, x["x"], z, p)
        with with_weights(out, {"weight": p["out_proj.weight"], "bias": p["out_proj.bias"]}):
            return {"y": out(y), "router_scores": scores}

    return Built(forward, case.params(dtype))
