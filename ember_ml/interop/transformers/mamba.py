"""Mamba, Mamba-2, Jamba and Falcon-H1: selective state spaces alone, in turn with attention, and beside it."""

from __future__ import annotations

import math

from ember_ml import ops
from ember_ml.interop.rules import WEIGHT, Layout, Part, Source, Table, scaled, squeezed
from ember_ml.interop.fields import Fields
from ember_ml.interop.transformers.llama import moe_config
from ember_ml.interop.transformers.parts import ATTENTION, block, ends, gated_mlp, language_model, sparse_moe
from ember_ml.nn.models import ModelConfig

MIXER: Table = {
    **{name: name for name in ("in_proj.weight", "in_proj.bias", "out_proj.weight", "out_proj.bias", "A_log", "D")},
    "conv.weight": squeezed("conv1d.weight"), "conv.bias": "conv1d.bias",
}
MAMBA: Table = {**MIXER, **{name: name for name in ("x_proj.weight", "dt_proj.weight", "dt_proj.bias")},
                "r_norm.weight": "dt_layernorm.weight", "B_norm.weight": "b_layernorm.weight", "C_norm.weight": "c_layernorm.weight"}
MAMBA2: Table = {**MIXER, "dt_bias": "dt_bias", "norm.weight": "norm.weight"}


def _stack(c: Fields, layer: str, config: dict, table: Table, tied: bool) -> Layout:
    norm = {"eps": c.number("layer_norm_epsilon", 1e-5)}
    parts, ignored = ends("backbone.embeddings.", "backbone.norm_f.", tied)
    for i in range(c.layers()):
        parts += [Part(f"blocks.{i}.norm.", f"backbone.layers.{i}.norm.", WEIGHT), Part(f"blocks.{i}.layer.", f"backbone.layers.{i}.mixer.", table)]
    blocks = [block(layer, config, "rms_norm", norm)] * c.layers()
    return Layout(ModelConfig(**language_model(c, blocks, "rms_norm", norm, tied)), parts, ignored)


def mamba(c: Fields) -> Layout:
    """MambaForCausalLM."""
    c.only("hidden_act", "silu")
    width, rank = c.size("hidden_size"), c.get("time_step_rank", "auto")
    config = {"d_state": c.size("state_size", 16), "expand": c.size("expand", 2), "taps": c.size("conv_kernel", 4),
              "dt_rank": -(-width // 16) if rank == "auto" else c.size("time_step_rank"), "bias": c.flag("use_bias"),
              "conv_bias": c.flag("use_conv_bias", True)}
    return _stack(c, "mamba", config, MAMBA, c.flag("tie_word_embeddings", True))


def _limits(c: Fields, name: str) -> list[float | None] | None:
    """Bounds of the step size; None where they change nothing: softplus is above 0."""
    low, high = c.numbers(name, 2, [0.0, math.inf], most=math.inf)
    return None if low <= 0.0 and high == math.inf else [low, None if high == math.inf else high]


def mamba2(c: Fields) -> Layout:
    """Mamba2ForCausalLM."""
    c.only("hidden_act", "silu")
    inner = c.size("num_heads") * c.size("head_dim")
    config = {"d_state": c.size("state_size", 128), "d_inner": inner, "head_dim": c.size("head_dim"), "groups": c.size("n_groups", 8),
              "taps": c.size("conv_kernel", 4), "bias": c.flag("use_bias"), "conv_bias": c.flag("use_conv_bias", True),
              "dt_limit": _limits(c, "time_step_limit"), "norm_eps": c.number("layer_norm_epsilon", 1e-5)}
    return _stack(c, "mamba2", config, MAMBA2, c.flag("tie_word_embeddings"))


def jamba(c: Fields) -> Layout:
    """JambaForCausalLM: attention has no positions, the mixture's weights are not made to sum to one."""
    c.only("hidden_act", "silu")
    norm, width, tied = {"eps": c.number("rms_norm_eps", 1e-6)}, c.size("hidden_size"), c.flag("tie_word_embeddings")
    attention = {**c.heads(), "bias": False}
    rank = c.get("mamba_dt_rank", "auto")
    mixer = {"d_state": c.size("mamba_d_state", 16), "expand": c.size("mamba_expand", 2), "taps": c.size("mamba_d_conv", 4),
             "dt_rank": -(-width // 16) if rank == "auto" else c.size("mamba_dt_rank"), "bias": c.flag("mamba_proj_bias"),
             "conv_bias": c.flag("mamba_conv_bias", True), "inner_norm": True, "norm_eps": norm["eps"]}
    inner, experts = c.size("intermediate_size"), c.size("num_experts", 16)
    sparse = moe_config(experts, c.size("num_experts_per_tok", 2), inner, "silu", normalize=False)
    parts, ignored = ends("model.embed_tokens.", "model.final_layernorm.", tied)
    blocks = []
    for i in range(c.layers()):
        at, first, second = f"model.layers.{i}.", f"blocks.{2 * i}.", f"blocks.{2 * i + 1}."
        attends = i % c.size("attn_layer_period", 8) == c.get("attn_layer_offset", 4)
        routes = experts > 1 and i % c.size("expert_layer_period", 2) == c.get("expert_layer_offset", 1)
        blocks += [block(*(("self_attention", attention) if attends else ("mamba", mixer)), "rms_norm", norm),
                   block(*(("moe", sparse) if routes else ("gated_mlp", {"d_inner": inner})), "rms_norm", norm)]
        parts += [Part(first + "norm.", at + "input_layernorm.", WEIGHT), Part(second + "norm.", at + "pre_ff_layernorm.", WEIGHT),
                  Part(first + "layer.", at + ("self_attn." if attends else "mamba."), ATTENTION if attends else MAMBA),
                  Part(second + "layer.", at + "feed_forward.", sparse_moe(experts, "router.weight") if routes else gated_mlp())]
    return Layout(ModelConfig(**language_model(c, blocks, "rms_norm", norm, tied)), parts, ignored)


def falcon_h1(c: Fields) -> Layout:
    """FalconH1ForCausalLM. Its fixed multipliers are multiplied into the weights beside them: the function is the same, the
    size of the weights is not. Embedding and head keep theirs."""
    c.only("hidden_act", "silu")
    norm, tied, heads = {"eps": c.number("rms_norm_eps", 1e-5)}, c.flag("tie_word_embeddings"), c.heads()
    inner = c.size("mamba_d_ssm", c.size("mamba_expand", 2) * c.size("hidden_size"))
    state, groups, bias = c.size("mamba_d_state", 256), c.size("mamba_n_groups", 1), c.flag("mamba_proj_bias")
    c.only("projectors_bias", bias)
    has_norm = c.flag("mamba_rms_norm")
    mixer = {"d_state": state, "d_inner": inner, "head_dim": c.size("mamba_d_head"), "groups": groups, "taps": c.size("mamba_d_conv", 4),
             "bias": bias, "conv_bias": c.flag("mamba_conv_bias", True), "dt_limit": _limits(c, "time_step_limit"), "norm_eps": norm["eps"],
             "norm": ("before" if c.flag("mamba_norm_before_gate", True) else "after") if has_norm else None}
    attention = {**heads, "bias": c.flag("attention_bias"), "rope": c.rope(heads["head_dim"])}
    hybrid = {"mixers": [{"layer": "mamba2", "layer_config": mixer}, {"layer": "self_attention", "layer_config": attention}]}
    mlp = {"d_inner": c.size("intermediate_size"), "bias": c.flag("mlp_bias")}
    parts, ignored = ends("model.embed_tokens.", "model.final_layernorm.", tied)
    tables = _falcon_tables(c, inner, groups * state, mixer["head_dim"])
    for i in range(c.layers()):
        at, first, second = f"model.layers.{i}.", f"blocks.{2 * i}.", f"blocks.{2 * i + 1}."
        parts += [Part(first + "norm.", at + "input_layernorm.", WEIGHT), Part(second + "norm.", at + "pre_ff_layernorm.", WEIGHT),
                  *(Part(first + f"layer.mixers.{j}.", at + place, tables[place]) for j, place in enumerate(("mamba.", "self_attn."))),
                  Part(second + "layer.", at + "feed_forward.", tables["feed_forward."])]
    blocks = [block("parallel", hybrid, "rms_norm", norm), block("gated_mlp", mlp, "rms_norm", norm)] * c.layers()
    return Layout(ModelConfig(**language_model(c, blocks, "rms_norm", norm, tied, embedding_scale=c.number("embedding_multiplier", 1.0),
                                               logit_scale=c.number("lm_head_multiplier", 1.0))), parts, ignored)


def _falcon_tables(c: Fields, inner: int, states: int, head_dim: int) -> dict[str, Table]:
    """Tables of Falcon-H1's mixers and perceptron, by their place in a layer, with the multipliers in them."""
    ssm_in, ssm_out = c.number("ssm_in_multiplier", 1.0), c.number("ssm_out_multiplier", 1.0)
    rows = list(zip(c.numbers("ssm_multipliers", 5, [1.0] * 5), (inner, inner, states, states, inner // head_dim)))

    def by_rows(x, factor: float = 1.0):
        return ops.concat([ops.full((n,) + (1,) * (x.ndim - 1), m * factor, x.dtype, like=x) for m, n in rows], axis=0) * x

    mamba = {**MAMBA2, "in_proj.weight": scaled("in_proj.weight", lambda w: by_rows(w, ssm_in)), "in_proj.bias": scaled("in_proj.bias", by_rows),
             "out_proj.weight": scaled("out_proj.weight", ssm_out), "out_proj.bias": scaled("out_proj.bias", ssm_out)}
    into, key, out = (c.number(f"{n}_multiplier", 1.0) for n in ("attention_in", "key", "attention_out"))

    def projections(part: str, factor: float) -> Source:
        scales = {"q_proj": factor, "k_proj": factor * key, "v_proj": factor}
        return lambda p: ops.concat([p[f"{name}.{part}"] * scale for name, scale in scales.items()], axis=0)

    attention = {"in_proj.weight": projections("weight", into), "in_proj.bias": projections("bias", 1.0),
                 "out_proj.weight": scaled("o_proj.weight", out), "out_proj.bias": scaled("o_proj.bias", out)}
    gate, down = c.numbers("mlp_multipliers", 2, [1.0, 1.0])
    mlp = {name: scaled(source, {"glu.gate": gate, "down": down}.get(name.rpartition(".")[0], 1.0)) for name, source in gated_mlp().items()}
    return {"mamba.": mamba, "self_attn.": attention, "feed_forward.": mlp}
