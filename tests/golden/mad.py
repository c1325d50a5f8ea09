"""MAD-Lab's layers."""

from __future__ import annotations

import inspect

import numpy as np

import ember_ml as em
from ember_ml import ops
from ember_ml.data.synthetic import TASKS
from ember_ml.nn.layers import (
    MLP, RWKV5, RWKV6, GatedLinearAttention, GatedLinearAttentionConfig, GatedMLP, GatedMLPConfig, LinearAttention, LinearAttentionConfig,
    Mamba, MambaConfig, MLPConfig, RoPEConfig, RWKV5Config, RWKV6Config, RWKVChannelMixing, RWKVChannelMixingConfig, SelfAttention,
    SelfAttentionConfig,
)
from tests.golden.case import Built, Case, Tensors, builder, with_weights


def _mamba(c: dict) -> Mamba:
    rank = None if c["dt_rank"] == "auto" else c["dt_rank"]
    return Mamba(MambaConfig(c["dim"], c["d_state"], c["expand"], c["d_conv"], rank, c["bias"], c["conv_bias"]))


def mamba_weights(p: Tensors) -> Tensors:
    names = {"conv1d.weight": "conv.weight", "conv1d.bias": "conv.bias"}
    return {names.get(n, n): ops.squeeze(w, 1) if n == "conv1d.weight" else w for n, w in p.items()}


@builder("mad/mamba")
def mamba(case: Case, dtype: str) -> Built:
    """The selective state space."""
    module = _mamba(case.config)

    def forward(x: Tensors, p: Tensors) -> Tensors:
        with with_weights(module, mamba_weights(p)):
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
        with with_weights(module, mamba_weights(p)):
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


PERCEPTRONS = {"fc": "fc1", "proj": "fc2", "w1": "glu.gate", "w2": "glu.up", "w3": "down"}


def perceptron_weights(p: Tensors) -> Tensors:
    return {".".join([PERCEPTRONS[n.partition(".")[0]], n.partition(".")[2]]): w for n, w in p.items()}


@builder("mad/mlp", "mad/swiglu")
def perceptron(case: Case, dtype: str) -> Built:
    """The plain and the gated perceptron."""
    c = case.config
    module = (MLP(MLPConfig(c["dim"], c["dim_inner"], bias=c["bias"])) if case.name == "mlp" else
              GatedMLP(GatedMLPConfig(c["dim"], bias=c["bias"], multiple_of=c["multiple_of"])))

    def forward(x: Tensors, p: Tensors) -> Tensors:
        with with_weights(module, perceptron_weights(p)):
            return {"y": module(x["x"])}

    return Built(forward, case.params(dtype))


def _flat(w):
    """(1, 1, D) as (D,)."""
    return ops.reshape(w, w.shape[-1:])


def _rwkv_names(p: Tensors) -> Tensors:
    """Version 5 keeps the share of the present in `time_mix_*`, version 6 that of the past in `time_maa_*`, as Ember does."""
    named = {}
    for name, w in p.items():
        kind, _, which = name.rpartition("_")
        if kind == "time_mix":
            named[f"mix_{which}"] = 1.0 - _flat(w)
        elif kind == "time_maa" and which[0] != "w" or name == "time_maa_w":
            named[f"mix_{which}"] = _flat(w)
        else:
            named[name.replace("ln_x", "norm").replace("time_faaaa", "bonus")] = w
    return named


@builder("mad/rwkv5_time_mixer", "mad/rwkv6_time_mixer")
def rwkv_time_mixer(case: Case, dtype: str) -> Built:
    """Version 5 divides by head_dim_divisor before its norm; version 6 multiplies the norm's eps by its square, which is the same."""
    c, eps = case.config, 1e-5 * case.config["head_dim_divisor"] ** 2
    five = case.name.startswith("rwkv5")
    module = (RWKV5(RWKV5Config(c["dim"], c["head_dim"], c["dim_att"], eps)) if five else
              RWKV6(RWKV6Config(c["dim"], c["head_dim"], c["dim_att"], eps)))

    def forward(x: Tensors, p: Tensors) -> Tensors:
        named = _rwkv_names(p)
        if five:
            named["decay"] = named.pop("time_decay")
        else:
            named |= {"decay": _flat(named.pop("time_decay")), "mix_up": named.pop("time_maa_w2"),
                      "mix_down.weight": ops.swap_axes(named.pop("time_maa_w1")),
                      "decay_down.weight": ops.swap_axes(named.pop("time_decay_w1")),
                      "decay_up.weight": ops.swap_axes(named.pop("time_decay_w2"))}
        with with_weights(module, named):
            return {"y": module(x["x"])[0]}

    return Built(forward, case.params(dtype))


@builder("mad/rwkv5_channel_mixer", "mad/rwkv6_channel_mixer")
def rwkv_channel_mixer(case: Case, dtype: str) -> Built:
    """The same layer, whose shares two versions keep differently."""
    module = RWKVChannelMixing(RWKVChannelMixingConfig(case.config["dim"], case.config["dim_inner"]))

    def forward(x: Tensors, p: Tensors) -> Tensors:
        with with_weights(module, _rwkv_names(p)):
            return {"y": module(x["x"])[0]}

    return Built(forward, case.params(dtype))


def _linear_attention(c: dict) -> LinearAttention:
    feature_map = {"dpfp": "dpfp_mad"}.get(c["feature_map"], c["feature_map"])     # Ember's dpfp sees negative channels, too
    return LinearAttention(LinearAttentionConfig(c["dim"], c["num_heads"], c["expand_k"], c["expand_v"], feature_map, c["tie_feature_map_qk"],
                                                 c["norm_q"], c["norm_k"], c["eps"]))


def _linear_attention_weights(p: Tensors) -> Tensors:
    named = {}
    for name, w in p.items():
        place, *rest = name.split(".")
        which = place[-1]                                   # proj_q, feature_map_q
        if place.startswith("feature_map"):                 # with "layer", or "layer1" and "layer2"
            layer, part = rest
            named[f"{which}_map.maps.{int(layer[5:] or 1) - 1}.{part}"] = w
        else:
            named["o_proj.weight" if place == "out_proj" else f"{which}_proj.weight"] = w
    return named


@builder("mad/linear_attention*")
def linear_attention(case: Case, dtype: str) -> Built:
    """With every feature map; the step's case keeps the sums of keys and of values apart."""
    module = _linear_attention(case.config)

    def forward(x: Tensors, p: Tensors) -> Tensors:
        with with_weights(module, _linear_attention_weights(p)):
            y, _ = module(x["x"])
            if not case.name.endswith("_step"):
                return {"y": y}
            y_steps, _, state = steps(module, x["x"], module.initial_state(y.shape[0], dtype))
        sums = ops.expand_dims(ops.swap_axes(state), 2)
        return {"y_steps": y_steps, "y_parallel": y, "kv_state": sums[..., :-1, :], "k_state": sums[..., -1:, :]}

    return Built(forward, case.params(dtype))


@builder("mad/task_*")
def task(case: Case, dtype: str) -> Built:
    """A task's sequences, to the bit. The original draws the blanks of one task from NumPy's global state."""
    c, kind = case.config, TASKS[case.name.removeprefix("task_")]
    fields = {name: value for name, value in c.items() if name in inspect.signature(kind).parameters}
    if "make_kv_map_seed" in c:
        fields["map_seed"] = c["make_kv_map_seed"]
    if "as_published" in inspect.signature(kind).parameters:
        fields["as_published"] = True
    source = kind(**fields)

    def forward(_x: Tensors, _p: Tensors) -> Tensors:
        found = {}
        for split, training in (("train", True), ("test", False)):
            np.random.seed(c.get("numpy_global_seed", 0))
            inputs, targets = source.instances(c["num_instances"], c["rng_seed"], training)
            found |= {f"{split}_inputs": em.tensor(inputs), f"{split}_targets": em.tensor(targets)}
        return found | ({"kv_map": em.tensor(source.key_values())} if "map_seed" in fields else {})

    return Built(forward, {})
