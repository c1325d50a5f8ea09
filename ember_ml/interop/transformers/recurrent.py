"""RWKV-4, xLSTM (the large model) and RecurrentGemma."""

from __future__ import annotations

import struct

from ember_ml import ops
from ember_ml.interop.rules import AFFINE, WEIGHT, Layout, Part, Source, Table, first_of, flat, joined, scaled, squeezed
from ember_ml.interop.fields import Fields
from ember_ml.interop.transformers.parts import ATTENTION, block, ends, gated_mlp, language_model
from ember_ml.nn.models import ModelConfig



def _past(name: str) -> Source:
    """Shares of the previous position from those of the present one."""
    return scaled(flat(name), lambda share: 1.0 - share)


TIME_MIXING: Table = {
    "mix_k": _past("time_mix_key"), "mix_v": _past("time_mix_value"), "mix_r": _past("time_mix_receptance"), "decay": "time_decay",
    "bonus": "time_first", **{f"{name}.weight": f"{name}.weight" for name in ("key", "value", "receptance", "output")},
}
CHANNEL_MIXING: Table = {"mix_k": _past("time_mix_key"), "mix_r": _past("time_mix_receptance"),
                         **{f"{name}.weight": f"{name}.weight" for name in ("key", "value", "receptance")}}


def rwkv(c: Fields) -> Layout:
    """RwkvForCausalLM. Its `rescale_every` halves weights of deep layers for float16 and changes nothing else: it is left out."""
    norm, tied, width = {"eps": c.number("layer_norm_epsilon", 1e-5)}, c.flag("tie_word_embeddings"), c.size("hidden_size")
    parts, ignored = ends("rwkv.embeddings.", "rwkv.ln_out.", tied, AFFINE, "head.")
    parts.append(Part("blocks.0.norm.", "rwkv.blocks.0.pre_ln.", AFFINE))
    inner = {"d_inner": c.size("attention_hidden_size", width)}
    pair = [block("rwkv4", inner, "layer_norm", norm),
            block("rwkv_channel_mixing", {"d_inner": c.size("intermediate_size", 4 * width)}, "layer_norm", norm)]
    for i in range(c.layers()):
        at, first, second = f"rwkv.blocks.{i}.", f"blocks.{2 * i + 1}.", f"blocks.{2 * i + 2}."
        parts += [Part(first + "norm.", at + "ln1.", AFFINE), Part(first + "layer.", at + "attention.", TIME_MIXING),
                  Part(second + "norm.", at + "ln2.", AFFINE), Part(second + "layer.", at + "feed_forward.", CHANNEL_MIXING)]
    blocks = [{"norm": "layer_norm", "norm_config": norm}, *pair * c.layers()]
    return Layout(ModelConfig(**language_model(c, blocks, "layer_norm", norm, tied)), parts, ignored)


def _maybe_fused(fused: str, *names: str) -> Source:
    return first_of((fused, fused), (names[0], joined(*names)))


LARGE_MLSTM: Table = {"norm.weight": "multihead_norm.weight", "norm.bias": "multihead_norm.bias"}
LARGE_FEEDFORWARD: Table = {}
for _part in ("weight", "bias"):
    LARGE_MLSTM |= {
        f"in_proj.{_part}": _maybe_fused(f"qkv_opreact.{_part}", *(f"{n}.{_part}" for n in ("q", "k", "v", "ogate_preact"))),
        f"gates.{_part}": _maybe_fused(f"ifgate_preact.{_part}", f"igate_preact.{_part}", f"fgate_preact.{_part}"),
        f"out_proj.{_part}": f"out_proj.{_part}"}
    LARGE_FEEDFORWARD |= {
        f"glu.{ours}.{_part}": first_of((f"proj_up_gate_z.{_part}", lambda p, _i=i, _n=f"proj_up_gate_z.{_part}": ops.split(p[_n], 2)[_i]),
                                        (f"{theirs}.{_part}", f"{theirs}.{_part}"))
        for i, (ours, theirs) in enumerate((("gate", "proj_up_gate"), ("up", "proj_up")))}
    LARGE_FEEDFORWARD[f"down.{_part}"] = f"proj_down.{_part}"


def xlstm(c: Fields) -> Layout:
    """xLSTMForCausalLM, in the single or the fused layout of its weights."""
    eps, bias, tied = c.number("norm_eps", 1e-6), c.flag("use_bias"), c.flag("tie_word_embeddings")
    width, multiple = c.size("hidden_size"), c.size("ffn_round_up_to_multiple_of", 64)
    norm = ("rms_norm", {"eps": eps, "bias": bias})
    mlstm = {"heads": c.size("num_heads", 8), "expand_k": c.number("qk_dim_factor", 0.5), "expand_v": c.number("v_dim_factor", 1.0),
             "gate_cap": c.number("gate_soft_cap", 15.0), "bias": bias, "eps": c.number("eps", 1e-6), "norm_eps": eps}
    inner = int((int(width * c.number("ffn_proj_factor", 2.667)) + multiple - 1) // multiple * multiple)
    parts, ignored = ends("backbone.embeddings.", "backbone.out_norm.", tied)
    for i in range(c.layers()):
        at, first, second = f"backbone.blocks.{i}.", f"blocks.{2 * i}.", f"blocks.{2 * i + 1}."
        parts += [Part(first + "norm.", at + "norm_mlstm.", AFFINE), Part(first + "layer.", at + "mlstm_layer.", LARGE_MLSTM),
                  Part(second + "norm.", at + "norm_ffn.", AFFINE), Part(second + "layer.", at + "ffn.", LARGE_FEEDFORWARD)]
    blocks = [block("mlstm_large", mlstm, *norm), block("gated_mlp", {"d_inner": inner, "bias": bias}, *norm)] * c.layers()
    last = ("rms_norm", {"eps": eps})                       # there whatever add_out_norm says
    return Layout(ModelConfig(**language_model(c, blocks, *last, tied, logit_cap=c.number("output_logit_soft_cap", 30.0))), parts, ignored)


RG_LRU: Table = {
    **{f"{ours}.{part}": f"{theirs}.{part}" for ours, theirs in (("x_proj", "linear_x"), ("y_proj", "linear_y"), ("out_proj", "linear_out"))
       for part in ("weight", "bias")},
    "conv.weight": squeezed("conv_1d.weight"), "conv.bias": "conv_1d.bias", "decay": "rg_lru.recurrent_param",
    "input_gate": "rg_lru.input_gate_weight", "input_bias": "rg_lru.input_gate_bias", "recurrence_gate": "rg_lru.recurrent_gate_weight",
    "recurrence_bias": "rg_lru.recurrent_gate_bias",
}


def recurrent_gemma(c: Fields) -> Layout:
    """RecurrentGemmaForCausalLM. Its factor of the embedding, the root of the width, is a bfloat16 number there, and here."""
    c.only("hidden_activation", "gelu_pytorch_tanh")
    norm, width = {"eps": c.number("rms_norm_eps", 1e-6), "unit_offset": True}, c.size("hidden_size")
    tied, heads, count = c.flag("tie_word_embeddings", True), c.heads(), c.layers()
    attention = {**heads, "bias": c.flag("attention_bias"), "out_bias": True, "window": c.size("attention_window_size", 2048),
                 "rope": c.rope(heads["head_dim"], partial=0.5)}
    unit = {"d_inner": c.size("lru_width", width), "heads": heads["heads"], "taps": c.size("conv1d_width", 4)}
    mlp = {"d_inner": c.size("intermediate_size") // 2, "activation": "gelu_tanh", "bias": True}
    types = c.get("block_types", ["recurrent", "recurrent", "attention"])
    types = Fields({"block_types": types}, c.family).kinds("block_types", len(types) if isinstance(types, list) and types else 1, "recurrent", "attention")
    parts, ignored = ends("model.embed_tokens.", "model.final_norm.", tied)
    blocks = []
    for i in range(count):
        at, first, second = f"model.layers.{i}.", f"blocks.{2 * i}.", f"blocks.{2 * i + 1}."
        recurs = types[i % len(types)] == "recurrent"
        blocks += [block(*(("rg_lru", unit) if recurs else ("self_attention", attention)), "rms_norm", norm), block("gated_mlp", mlp, "rms_norm", norm)]
        parts += [Part(first + "norm.", at + "temporal_pre_norm.", WEIGHT), Part(second + "norm.", at + "channel_pre_norm.", WEIGHT),
                  Part(first + "layer.", at + "temporal_block.", RG_LRU if recurs else ATTENTION),
                  Part(second + "layer.", at + "mlp_block.", gated_mlp())]
    return Layout(ModelConfig(**language_model(c, blocks, "rms_norm", norm, tied, embedding_scale=_bfloat16(width ** 0.5),
                                               logit_cap=c.number("logits_soft_cap", 30.0))), parts, ignored)


def _bfloat16(x: float) -> float:
    """The nearest bfloat16 number: float32 without its lower 16 bits, ties to even."""
    bits = struct.unpack("<I", struct.pack("<f", x))[0]
    return struct.unpack("<f", struct.pack("<I", (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000))[0]
