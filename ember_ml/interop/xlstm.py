"""xLSTM's checkpoints: from the original parameter names and layouts to Ember's.

The functions take and return EmberTensors and only rename, join and permute them, so that gradients pass through.
"""

from __future__ import annotations

from typing import Any

from ember_ml import ops
from ember_ml.interop.asked import Asked
from ember_ml.interop.fields import Fields
from ember_ml.nn.layers import MLSTM, SLSTM, LargeMLSTM
from ember_ml.nn.models import XLSTM, Model, XLSTMConfig, XLSTMLarge, XLSTMLargeConfig
from ember_ml.tensor import EmberTensor

Tensors = dict[str, EmberTensor]


def read(state: Tensors, config: dict[str, Any]) -> Model:
    """The model of an original state dict: of an xLSTMLMModel, an xLSTMBlockStack or an xLSTMLarge.

    Args:
        state: tensors by their original names, on the engine where the model is to live.
        config: the original's configuration, as `model_config` takes it.

    Raises WeightsError naming a tensor that is missing or has no place in the model; ShapeError for one of another shape.
    """
    c = model_config(config)
    model, asked = (XLSTMLarge if isinstance(c, XLSTMLargeConfig) else XLSTM)(c), Asked("xlstm", state)
    model.update(model_weights(model, asked, bool(config.get("bias", False))))
    if model.config.head == "tied":
        asked.names.add("lm_head.weight")
    asked.all_read("a model of this configuration")
    return model


def model_config(c: dict[str, Any]) -> XLSTMConfig | XLSTMLargeConfig:
    """The config of a model from the original's: of xLSTMLMModelConfig with its nested tables, or of xLSTMLargeConfig.

    Raises ConfigError for a size that it does not name, and for values of another form. Dropout is left out: it is the training's.
    """
    f = Fields(c, "xlstm")
    width, count = f.size("embedding_dim"), f.layers("num_blocks")
    if "qk_dim_factor" in c or "mlstm_block" not in c:
        return XLSTMLargeConfig(
            f.size("vocab_size"), width, count, f.size("num_heads"), f.number("qk_dim_factor", 0.5), f.number("v_dim_factor", 1.0),
            f.number("ffn_proj_factor", 2.6667), f.size("ffn_round_up_to_multiple_of", 64), f.number("gate_soft_cap", 15.0),
            f.number("output_logit_soft_cap", 30.0), f.number("norm_eps", 1e-6), f.flag("add_out_norm", True))
    mlstm, block = f.table("mlstm_block").table("mlstm"), f.table("slstm_block")
    slstm, forward = block.table("slstm"), block.table("feedforward")
    activation = forward.word("act_fn", "gelu")
    return XLSTMConfig(
        width, count, list(range(count)) if c.get("slstm_at") == "all" else sorted(f.places("slstm_at", [])),
        f.get("vocab_size") and f.size("vocab_size"),
        heads=mlstm.size("num_heads", 4), expand=mlstm.number("proj_factor", 2.0), taps=mlstm.size("conv1d_kernel_size", 4),
        block=mlstm.size("qkv_proj_blocksize", 4), bias=f.flag("bias"), slstm_heads=slstm.size("num_heads", 4),
        slstm_taps=slstm.get("conv1d_kernel_size", 4) or None, slstm_cell=slstm.word("function", "slstm"),
        ff_expand=forward.number("proj_factor", 1.3), ff_activation={"swish": "silu", "relu^2": "relu_squared"}.get(activation, activation),
        multiple_of=mlstm.size("round_proj_up_to_multiple_of", 64), ff_multiple_of=forward.size("round_proj_up_to_multiple_of", 64),
        final_norm=f.flag("add_post_blocks_norm", True), head="tied" if f.flag("tie_weights") else "dense")


def model_weights(m: Model, p: Tensors, bias: bool = False) -> Tensors:
    """Tensors of a model, by Ember's names, from those of the original, whichever of the three it is."""
    large = isinstance(m.blocks[0].layer, LargeMLSTM)
    stack = "backbone." if large else "xlstm_block_stack." if m.embedding is not None else ""
    named, original = {}, 0
    for i, block in enumerate(m.blocks):
        layer, ours, theirs = block.layer, f"blocks.{i}.", f"{stack}blocks.{original}."
        if isinstance(layer, (MLSTM, SLSTM, LargeMLSTM)):
            named[ours + "norm.weight"] = p[theirs + ("norm_mlstm.weight" if large else "xlstm_norm.weight")]
            inner = (large_weights(p, theirs + "mlstm_layer.", bias) if large else mlstm_weights(p, theirs + "xlstm.", bias)
                     if isinstance(layer, MLSTM) else slstm_weights(p, theirs + "xlstm.", layer.conv is not None))
        else:
            named[ours + "norm.weight"] = p[theirs + ("norm_ffn.weight" if large else "ffn_norm.weight")]
            inner = feed_forward_weights(p, theirs + "ffn.")
        named |= {f"{ours}layer.{name}": w for name, w in inner.items()}
        after = m.blocks[i + 1].layer if i + 1 < len(m.blocks) else None
        original += after is None or isinstance(after, (MLSTM, SLSTM, LargeMLSTM))
    if m.norm is not None:
        named["norm.weight"] = p[stack + ("out_norm.weight" if large else "post_blocks_norm.weight")]
    if m.embedding is not None:
        named["embedding.weight"] = p["embedding.weight" if large else "token_embedding.weight"]
    if m.head is not None:
        named["head.weight"] = p["lm_head.weight"]
    return named


def feed_forward_weights(p: Tensors, prefix: str) -> Tensors:
    """GatedMLP's tensors from those of any of the originals' feed-forward layers below `prefix`."""
    named = {"down.weight": p[prefix + "proj_down.weight"]}
    if prefix + "proj_up_gate.weight" in p:
        return named | {"glu.gate.weight": p[prefix + "proj_up_gate.weight"], "glu.up.weight": p[prefix + "proj_up.weight"]}
    both = p[prefix + ("proj_up_gate_z.weight" if prefix + "proj_up_gate_z.weight" in p else "proj_up.weight")]
    gate, up = ops.split(both, 2, axis=0)
    return named | {"glu.gate.weight": gate, "glu.up.weight": up}


def mlstm_weights(p: Tensors, prefix: str = "", bias: bool = False) -> Tensors:
    """MLSTM's tensors from those of the original mLSTM layer below `prefix`."""
    named = {"norm.weight": p[prefix + "mlstm_cell.outnorm.weight"], "skip": p[prefix + "learnable_skip"], **_conv(p, prefix)}
    for part in ("q_proj", "k_proj", "v_proj"):
        named[f"{part}.weight"] = p[f"{prefix}{part}.weight"]
    for part in ("weight", "bias"):
        named[f"gates.{part}"] = ops.concat([p[f"{prefix}mlstm_cell.{gate}.{part}"] for gate in ("igate", "fgate")])
    for ours, theirs in (("in_proj", "proj_up"), ("out_proj", "proj_down")):
        named |= {f"{ours}.{part}": p[f"{prefix}{theirs}.{part}"] for part in ("weight", "bias")[:1 + bias]}
    return named


def slstm_weights(p: Tensors, prefix: str = "", conv: bool = True) -> Tensors:
    """SLSTM's tensors from those of the original sLSTM layer below `prefix`, where fgate feeds the input gate, igate the forget gate."""
    named = _conv(p, prefix) if conv else {}
    for ours, theirs in (("i", "fgate"), ("f", "igate"), ("z", "zgate"), ("o", "ogate")):
        named[f"{ours}_proj.weight"] = p[f"{prefix}{theirs}.weight"]
    return named | {"recurrent": ops.swap_axes(p[prefix + "slstm_cell._recurrent_kernel_"]), "bias": p[prefix + "slstm_cell._bias_"],
                    "norm.weight": p[prefix + "group_norm.weight"]}


def large_weights(p: Tensors, prefix: str = "", bias: bool = False) -> Tensors:
    """LargeMLSTM's tensors from those of the large model's mLSTM layer below `prefix`, in its single or its fused layout."""
    parts = ("weight", "bias")
    named = {"norm.weight": p[prefix + "multihead_norm.weight"]} | ({"norm.bias": p[prefix + "multihead_norm.bias"]} if bias else {})
    for part in parts:
        fused = f"{prefix}ifgate_preact.{part}"
        named[f"gates.{part}"] = p[fused] if fused in p else ops.concat([p[f"{prefix}{gate}gate_preact.{part}"] for gate in "if"])
    for part in parts[:1 + bias]:
        fused = f"{prefix}qkv_opreact.{part}"
        single = [f"{prefix}{x}.{part}" for x in ("q", "k", "v", "ogate_preact")]
        named[f"in_proj.{part}"] = p[fused] if fused in p else ops.concat([p[name] for name in single])
        named[f"out_proj.{part}"] = p[f"{prefix}out_proj.{part}"]
    return named


def _conv(p: Tensors, prefix: str) -> Tensors:
    return {"conv.weight": ops.squeeze(p[prefix + "conv1d.conv.weight"], 1), "conv.bias": p[prefix + "conv1d.conv.bias"]}
