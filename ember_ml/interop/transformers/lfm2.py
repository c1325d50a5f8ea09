"""LFM2 and LFM2-MoE: gated short convolutions and some attention."""

from __future__ import annotations

from ember_ml.errors import ConfigError
from ember_ml.interop.rules import WEIGHT, Layout, Part, Table, squeezed
from ember_ml.interop.fields import Fields
from ember_ml.interop.transformers.llama import moe_config
from ember_ml.interop.transformers.parts import ATTENTION, block, ends, gated_mlp, language_model, sparse_moe
from ember_ml.nn.models import ModelConfig

#: the same as others' attention, but for three names
ATTENTION_LFM2: Table = {**ATTENTION, "out_proj.weight": "out_proj.weight", "q_norm.weight": "q_layernorm.weight", "k_norm.weight": "k_layernorm.weight"}
CONV: Table = {**{f"{name}.{part}": f"{name}.{part}" for name in ("in_proj", "out_proj") for part in ("weight", "bias")},
               "conv.weight": squeezed("conv.weight"), "conv.bias": "conv.bias"}


def _layout(c: Fields, dense: int, mlp: dict, sparse: tuple[dict, Table] | None) -> Layout:
    """The first `dense` layers have a perceptron, the others the mixture `sparse` (its config and table)."""
    norm, heads, count = {"eps": c.number("norm_eps", 1e-5)}, c.heads(), c.layers()
    attention = {**heads, "bias": False, "rope": c.rope(heads["head_dim"], 1e6), "qk_norm": True, "norm_eps": norm["eps"]}
    conv = {"taps": c.size("conv_L_cache", 3), "bias": c.flag("conv_bias")}
    tied = c.flag("tie_word_embeddings", c.flag("tie_embedding", True))
    parts, ignored = ends("model.embed_tokens.", "model.embedding_norm.", tied)
    blocks = []
    for i, kind in enumerate(_kinds(c, count)):
        at, first, second = f"model.layers.{i}.", f"blocks.{2 * i}.", f"blocks.{2 * i + 1}."
        is_conv = kind == "conv"
        config, table = (mlp, gated_mlp("w1", "w3", "w2")) if i < dense or sparse is None else sparse
        blocks += [block(*(("gated_short_conv", conv) if is_conv else ("self_attention", attention)), "rms_norm", norm),
                   block("gated_mlp" if config is mlp else "moe", config, "rms_norm", norm)]
        parts += [Part(first + "norm.", at + "operator_norm.", WEIGHT), Part(second + "norm.", at + "ffn_norm.", WEIGHT),
                  Part(first + "layer.", at + ("conv." if is_conv else "self_attn."), CONV if is_conv else ATTENTION_LFM2),
                  Part(second + "layer.", at + "feed_forward.", table)]
    return Layout(ModelConfig(**language_model(c, blocks, "rms_norm", norm, tied)), parts, ignored)


def _kinds(c: Fields, count: int) -> list[str]:
    if c.get("layer_types") is not None:
        return c.kinds("layer_types", count, "conv", "full_attention")
    attends = c.get("full_attn_idxs")
    if not isinstance(attends, list):
        raise ConfigError(f"{c.family}: needs layer_types or full_attn_idxs, which say where attention stands")
    return ["full_attention" if i in attends else "conv" for i in range(count)]


def lfm2(c: Fields) -> Layout:
    """Lfm2ForCausalLM."""
    inner = c.size("intermediate_size", c.get("block_ff_dim"))
    if c.flag("block_auto_adjust_ff_dim", True):
        multiple = c.size("block_multiple_of", 256)
        inner = int(c.number("block_ffn_dim_multiplier", 1.0) * int(2 * inner / 3))
        inner = -(-inner // multiple) * multiple
    return _layout(c, c.layers(), {"d_inner": inner}, None)


def lfm2_moe(c: Fields) -> Layout:
    """Lfm2MoeForCausalLM."""
    experts = c.size("num_experts")
    config = moe_config(experts, c.size("num_experts_per_tok"), c.size("moe_intermediate_size"), "silu", "sigmoid",
                        normalize=c.flag("norm_topk_prob", True), eps=1e-6, scale=c.number("routed_scaling_factor", 1.0))
    bias = "expert_bias" if c.flag("use_expert_bias", True) else None
    table = sparse_moe(experts, "gate.weight", gate="w1", up="w3", down="w2", bias=bias)
    return _layout(c, c.get("num_dense_layers", 2), {"d_inner": c.size("intermediate_size")}, (config, table))
