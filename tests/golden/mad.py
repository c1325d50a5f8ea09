"""MAD-Lab's layers."""

from __future__ import annotations

from ember_ml import ops
from ember_ml.nn.layers import (
    GatedLinearAttention, GatedLinearAttentionConfig, GatedMLP, GatedMLPConfig, Mamba, MambaConfig, MLP, MLPConfig, RoPEConfig, SelfAttention,
    SelfAttentionConfig,
)
from tests.golden.case import Built, Case, Tensors, builder, with_weights


def _mamba(c: dict) -> Mamba:
    rank = None if c["dt_rank"] == "auto" else c["dt_rank"]
    return Mamba(MambaConfig(c["dim"], c["d_state"], c["expand"], c["d_conv"], rank, c["bias"], c["conv_bias"]))


def _mamba_weights(p: Tensors) -> Tensors:
    names = {"conv1d.weight": "conv.weight", "conv1d.bias": "conv.bias"}
    return {names.get(n, n): ops.squeeze(w, 1) if n == "conv1d.weight" else w for n, w in p.items()}


@builder("mad/mamba")
def mamba(case: Case, dtype: str) -> Built:
    """The selective state space."""
    module = _mamba(case.config)

    def forward(x: Tensors, p: Tensors) -> Tensors:
        with with_weights(module, _mamba_weights(p)):
            return {"y": module(x["x"])[0]}

    return Built(forward, case.params(dtype))


def steps(module, x, state):
    """The outputs of `step` at every position of x (B, L, D), and the states before the last step and after it."""
    out, before = [], state
    for t in range(x.shape[1]):
        before = state
        y, state = module.step(x[:, t], state)
        out.append(y)
    return ops.stack(out, axis=1), before, state


@builder("mad/mamba_step")
def mamba_step(case: Case, dtype: str) -> Built:
    """Step by step from nothing. The original's convolution keeps the present input too: one more than Ember's."""
    module = _mamba(case.config)

    def forward(x: Tensors, p: Tensors) -> Tensors:
        with with_weights(module, _mamba_weights(p)):
            parallel, _ = module(x["x"])
            y, before, after = steps(module, x["x"], module.initial_state(x["x"].shape[0], dtype))
        conv = ops.concat([before["conv"], after["conv"][:, -1:]], axis=1)
        return {"y_steps": y, "y_parallel": parallel, "final_conv_state": ops.swap_axes(conv), "final_ssm_state": after["h"]}

    return Built(forward, case.params(dtype))


@builder("mad/gated_linear_attention")
def gated_linear_attention(case: Case, dtype: str) -> Built:
    """One decay per key channel, from a projection of low rank."""
    c = case.config
    module = GatedLinearAttention(GatedLinearAttentionConfig(
        c["dim"], c["num_heads"], c["expand_k"], c["expand_v"], {"swish": "silu"}.get(c["gate_fn"], c["gate_fn"]),
        c["gate_low_rank_dim"], c["gate_logit_normalizer"], c["clamp_min"], c["layernorm_eps"]))
    names = {"gk_proj.0.weight": "decay_down.weight", "gk_proj.1.weight": "decay_up.weight", "gk_proj.1.bias": "decay_up.bias",
             "g_norm.weight": "norm.weight"}

    def forward(x: Tensors, p: Tensors) -> Tensors:
        with with_weights(module, {names.get(n, n): w for n, w in p.items()}):
            return {"y": module(x["x"])[0]}

    return Built(forward, case.params(dtype))


@builder("mad/attention", "mad/mh_attention", "mad/sliding_attention")
def attention(case: Case, dtype: str) -> Built:
    """Attention with rotary positions; a window of n to the left is n + 1 positions."""
    c = case.config
    left = c["window_size"][0]
    module = SelfAttention(SelfAttentionConfig(
        c["dim"], c["n_heads"], c["qkv_proj_bias"], c["num_heads_kv"], out_bias=c["out_proj_bias"], causal=c["causal"],
        window=None if left < 0 else left + 1, rope=RoPEConfig(dims=c["rotary_emb_dim"]) if c["rotary_emb_dim"] else None,
        taps=3 if c["dwconv"] else None))

    def forward(x: Tensors, p: Tensors) -> Tensors:
        named = {n.replace("Wqkv", "in_proj").replace("dwconv_qkv", "conv"): ops.squeeze(w, 1) if w.ndim == 3 else w
                 for n, w in p.items()}
        with with_weights(module, named):
            return {"y": module(x["x"])[0]}

    return Built(forward, case.params(dtype))


@builder("mad/mlp", "mad/swiglu")
def perceptron(case: Case, dtype: str) -> Built:
    """The plain and the gated perceptron."""
    c = case.config
    if case.name == "mlp":
        module, names = MLP(MLPConfig(c["dim"], c["dim_inner"], bias=c["bias"])), {"fc": "fc1", "proj": "fc2"}
    else:
        module = GatedMLP(GatedMLPConfig(c["dim"], bias=c["bias"], multiple_of=c["multiple_of"]))
        names = {"w1": "glu.gate", "w2": "glu.up", "w3": "down"}

    def forward(x: Tensors, p: Tensors) -> Tensors:
        renamed = {".".join([names[n.partition(".")[0]], n.partition(".")[2]]): w for n, w in p.items()}
        with with_weights(module, renamed):
            return {"y": module(x["x"])}

    return Built(forward, case.params(dtype))
