"""Llama, Mixtral and Qwen3-MoE: attention with rotary positions, and a gated perceptron or a mixture of them."""

from __future__ import annotations

from ember_ml.interop.rules import WEIGHT, Layout, Part, first_of
from ember_ml.interop.fields import Fields
from ember_ml.interop.transformers.parts import ATTENTION, block, ends, gated_mlp, language_model, sparse_moe
from ember_ml.nn.models import ModelConfig


def _layout(c: Fields, attention: dict, channel_mixers: list[tuple[str, dict, str, dict]]) -> Layout:
    """channel_mixers: for each layer a registered layer, its config, its place below the original layer, and its table."""
    norm = {"eps": c.number("rms_norm_eps", 1e-6)}
    tied = c.flag("tie_word_embeddings")
    parts, ignored = ends("model.embed_tokens.", "model.norm.", tied)
    blocks = []
    for i, (name, config, place, table) in enumerate(channel_mixers):
        blocks += [block("self_attention", attention, "rms_norm", norm), block(name, config, "rms_norm", norm)]
        at, first, second = f"model.layers.{i}.", f"blocks.{2 * i}.", f"blocks.{2 * i + 1}."
        parts += [Part(first + "norm.", at + "input_layernorm.", WEIGHT), Part(first + "layer.", at + "self_attn.", ATTENTION),
                  Part(second + "norm.", at + "post_attention_layernorm.", WEIGHT), Part(second + "layer.", at + place, table)]
    return Layout(ModelConfig(**language_model(c, blocks, "rms_norm", norm, tied)), parts, ignored)


def llama(c: Fields) -> Layout:
    """LlamaForCausalLM."""
    heads, bias = c.heads(), c.flag("attention_bias")
    attention = {**heads, "bias": bias, "rope": c.rope(heads["head_dim"])}
    mlp = {"d_inner": c.size("intermediate_size"), "activation": c.activation(), "bias": c.flag("mlp_bias")}
    return _layout(c, attention, [("gated_mlp", mlp, "mlp.", gated_mlp())] * c.layers())


def mixtral(c: Fields) -> Layout:
    """MixtralForCausalLM."""
    heads, experts = c.heads(), c.size("num_local_experts", 8)
    attention = {**heads, "bias": False, "rope": c.rope(heads["head_dim"], 1e6), "window": c.get("sliding_window")}
    config = moe_config(experts, c.size("num_experts_per_tok", 2), c.size("intermediate_size"), c.activation(), normalize=True)
    router = first_of(("mlp.gate.weight", "mlp.gate.weight"), ("block_sparse_moe.gate.weight", "block_sparse_moe.gate.weight"))
    table = sparse_moe(experts, router, "mlp.experts.", "block_sparse_moe.experts.", "w1", "w3", "w2")
    return _layout(c, attention, [("moe", config, "", table)] * c.layers())


def qwen3_moe(c: Fields) -> Layout:
    """Qwen3MoeForCausalLM."""
    heads = c.heads()
    window = c.get("sliding_window") if c.flag("use_sliding_window") else None
    attention = {**heads, "bias": c.flag("attention_bias"), "rope": c.rope(heads["head_dim"]), "window": window, "qk_norm": True,
                 "norm_eps": c.number("rms_norm_eps", 1e-6)}
    mlp = {"d_inner": c.size("intermediate_size"), "activation": c.activation()}
    experts = c.size("num_experts", c.get("num_local_experts", 128))
    config = moe_config(experts, c.size("num_experts_per_tok", 8), c.size("moe_intermediate_size", 768), c.activation(),
                        normalize=c.flag("norm_topk_prob"))
    dense, step = set(c.get("mlp_only_layers", [])), c.size("decoder_sparse_step", 1)
    sparse, plain = ("moe", config, "mlp.", sparse_moe(experts, "gate.weight")), ("gated_mlp", mlp, "mlp.", gated_mlp())
    return _layout(c, attention, [plain if i in dense or (i + 1) % step else sparse for i in range(c.layers())])


def moe_config(experts: int, k: int, d_inner: int, activation: str, router: str = "softmax", **routing) -> dict:
    """SparseMoE's config for gated experts without biases, whose balance the checkpoint does not train."""
    return {"num_experts": experts, "k": k, "router_type": router, "router_config": {"balance_rate": 0.0, **routing},
            "expert_config": {"d_inner": d_inner, "activation": activation, "glu": True}}
