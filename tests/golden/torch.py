"""The functions and layers of torch on which HyenaDNA's layers stand."""

from __future__ import annotations

from ember_ml import ops
from ember_ml.nn.layers import LayerNorm, NormConfig, RMSNorm
from tests.golden.case import Built, Case, Tensors, builder, with_weights


@builder("torch/conv1d_depthwise")
def depthwise(case: Case, dtype: str) -> Built:
    """The short convolution is causal: torch's output with padding K - 1 is that of the input with K - 1 zeros behind it."""
    padding = case.config["padding"]

    def forward(x: Tensors, p: Tensors) -> Tensors:
        longer = ops.pad(x["x"], ((0, 0), (0, 0), (0, padding)))
        return {"y": ops.short_conv(longer, ops.squeeze(p["weight"], 1), p.get("bias"))}

    return Built(forward, case.params(dtype))


@builder("torch/layernorm", "torch/rmsnorm")
def norm(case: Case, dtype: str) -> Built:
    """Both norms as layers."""
    component = LayerNorm if case.name == "layernorm" else RMSNorm
    module = component(NormConfig(case.config["dim"], eps=case.config["eps"]))

    def forward(x: Tensors, p: Tensors) -> Tensors:
        with with_weights(module, p):
            return {"y": module(x["x"])}

    return Built(forward, case.params(dtype))


@builder("torch/scaled_dot_product_attention")
def attention(case: Case, dtype: str) -> Built:
    """Plain, causal, boolean mask, own scale, and grouped queries by repeating key heads."""
    c = case.config

    def forward(x: Tensors, _params: Tensors) -> Tensors:
        q, k, v = x["q"], x["k"], x["v"]
        attend = ops.scaled_dot_product_attention
        times = c["heads"] // c["kv_heads"]
        shared = [ops.repeat(t[:, :c["kv_heads"]], times, axis=1) for t in (k, v)]
        return {"y": attend(q, k, v), "y_causal": attend(q, k, v, causal=True), "y_mask": attend(q, k, v, mask=x["mask"]),
                "y_scale": attend(q, k, v, scale=c["scale"]), "y_gqa": attend(q, *shared)}

    return Built(forward, case.params(dtype))
