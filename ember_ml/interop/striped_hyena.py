"""Checkpoints of StripedHyena and of Evo 2 (vortex): from the original parameter names and layouts to Ember's.

The functions take and return EmberTensors and only rename, permute and convert them by ops, so that gradients pass through. What the
originals do to channels at run time (interleaving, splitting within heads, exchanging gates) is done to the rows of the weights here.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ember_ml import ops
from ember_ml.errors import ConfigError
from ember_ml.interop.asked import Asked
from ember_ml.interop.fields import Fields
from ember_ml.nn.layers import Dense, GatedConv, ModalFilterConfig, SelfAttention, TapsFilterConfig
from ember_ml.nn.models import Model, StripedHyena, StripedHyenaConfig
from ember_ml.tensor import EmberTensor

Tensors = dict[str, EmberTensor]

#: vortex convolves filters from this length on by FFT, first tap on the present and with a direct path; shorter ones the other way
LONG = 128


def read(state: Tensors, config: dict[str, Any]) -> StripedHyena:
    """The model of an original state dict.

    Args:
        state: tensors by their original names, on the engine where the model is to live.
        config: the original's configuration (config.json of StripedHyena, the yml of vortex), as `model_config` takes it.

    Raises WeightsError naming a tensor that is missing or has no place in the model; ShapeError for one of another shape.
    """
    model, asked = StripedHyena(model_config(config)), Asked("striped_hyena", state)
    model.update(model_weights(model, asked, config))
    for name in state:                                      # follow from the configuration, or are said twice
        if name.endswith(("rotary_emb.inv_freq", "filter.t")) or (name == "unembed.weight" and model.head is None):
            asked.names.add(name)
    asked.all_read("a model of this configuration")
    return model


def model_config(c: dict[str, Any]) -> StripedHyenaConfig:
    """The config of a model from the original's. Raises ConfigError for a size that it does not name, and for what Ember lacks."""
    evo2 = is_evo2(c)
    f = Fields(c, "evo2" if evo2 else "striped_hyena")
    if not f.flag("final_norm", True):
        raise ConfigError("striped_hyena: expected final_norm=True, which all published models have; received False")
    count, hidden, heads, attends = f.layers("num_layers"), f.size("hidden_size"), f.size("num_attention_heads"), f.places("attn_layer_idxs")
    kinds = {i: name for key, name in (("hcs", "hyena_se"), ("hcm", "hyena_mr"), ("hcl", "hyena_li")) for i in f.places(f"{key}_layer_idxs", [])}
    mixers = ["attention" if i in attends else kinds.get(i, "hyena_modal") for i in range(count)]
    multiple_of = f.size("inner_size_multiple_of", 64)
    inner = f.size("inner_mlp_size", -(-int(2 * hidden * 4 / 3) // multiple_of) * multiple_of)
    qkv = f.flag("qkv_proj_bias", not evo2)
    return StripedHyenaConfig(
        f.size("vocab_size"), hidden, mixers, heads, heads // f.size("proj_groups", 1), f.size("state_size"),
        (f.get("hcs_filter_groups") and f.size("hcs_filter_groups")) if evo2 else None, f.size("hcs_filter_length", 7), f.size("hcm_filter_length", 128),
        f.flag("short_filter_bias", True), qkv if evo2 else True, f.flag("hyena_out_proj_bias", True) if evo2 else True,
        qkv, f.flag("mha_out_proj_bias", True), inner, f.word("mlp_activation", "gelu"), "identity" if f.flag("evo2_style_activations") else None,
        f.number("rotary_emb_base", 10000.0), f.number("rotary_emb_scaling_factor", 1.0) if f.flag("use_interpolated_rotary_pos_emb") else 1.0,
        f.number("eps", 1e-6), "tied" if f.flag("tie_embeddings", True) else "dense")


def model_weights(m: Model, p: Tensors, c: dict[str, Any]) -> Tensors:
    """Tensors of a model, by Ember's names, from those of the original."""
    named = {"embedding.weight": p["embedding_layer.weight"], "norm.weight": p["norm.scale"]}
    if m.head is not None:
        named["head.weight"] = p["unembed.weight"]
    for i in range(0, len(m.blocks), 2):
        named |= block_weights(m.blocks[i:i + 2], p, f"blocks.{i // 2}.", c, f"blocks.{i}.", f"blocks.{i + 1}.")
    return named


def block_weights(pair, p: Tensors, prefix: str, c: dict[str, Any], first: str, second: str) -> Tensors:
    """Tensors of a mixer's and an MLP's Block from the one original block below `prefix`; they are named first... and second...."""
    named = {first + "norm.weight": p[prefix + "pre_norm.scale"], second + "norm.weight": p[prefix + "post_norm.scale"]}
    for ours, theirs in (("glu.gate", "l1"), ("glu.up", "l2"), ("down", "l3")):
        named[f"{second}layer.{ours}.weight"] = p[f"{prefix}mlp.{theirs}.weight"]
    mixer = pair[0].layer
    inner = attention_weights(mixer, p, prefix) if isinstance(mixer, SelfAttention) else gated_conv_weights(mixer, p, prefix, c)
    return named | {f"{first}layer.{name}": w for name, w in inner.items()}


def attention_weights(m: SelfAttention, p: Tensors, prefix: str) -> Tensors:
    """SelfAttention's tensors from those of the original attention block below `prefix`."""
    return (_dense(m.in_proj, p, "in_proj.", f"{prefix}inner_mha_cls.Wqkv.")
            | _dense(m.out_proj, p, "out_proj.", f"{prefix}inner_mha_cls.out_proj."))


def gated_conv_weights(m: GatedConv, p: Tensors, prefix: str, c: dict[str, Any]) -> Tensors:
    """GatedConv's tensors from those of the original Hyena block below `prefix`."""
    rows = channel_order(c)
    named = {name: _ordered(w, rows) for name, w in _dense(m.in_proj, p, "in_proj.", prefix + "projections.").items()}
    named |= _dense(m.out_proj, p, "out_proj.", prefix + "out_filter_dense.")
    return named | convolution_weights(p, prefix + "filter.", c, m.config.filter)


def _dense(m: Dense, p: Tensors, ours: str, theirs: str) -> Tensors:
    """A Dense's weight, and its bias where it has one."""
    return {ours + part: p[theirs + part] for part in ("weight", "bias") if getattr(m, part) is not None}


def _ordered(x: EmberTensor, rows: np.ndarray) -> EmberTensor:
    return ops.take(x, ops.tensor(rows, like=x), axis=0)


def is_evo2(c: dict[str, Any]) -> bool:
    """Whether a configuration is vortex's (Evo 2) and not StripedHyena's."""
    return "hcl_layer_idxs" in c


def channel_order(c: dict[str, Any]) -> np.ndarray:
    """Where the channels x_2, x_1, v of the gated convolution lie among the original's 3 hidden_size projected ones."""
    place = np.arange(3 * c["hidden_size"])
    if c.get("interleave", False):
        place = np.concatenate([place[i::3] for i in range(3)])
    if c.get("column_split_hyena", True):
        heads = place.reshape(c["num_attention_heads"], 3, -1)
        thirds = [heads[:, i].reshape(-1) for i in range(3)]
    else:
        thirds = np.split(place, 3)
    if c.get("hyena_flip_x1x2", False):
        thirds = [thirds[1], thirds[0], thirds[2]]
    return np.concatenate(thirds)


def filter_config(c: dict[str, Any], kind: str) -> TapsFilterConfig | ModalFilterConfig:
    """The inner filter of a layer of `kind` "hyena" (StripedHyena), "hcs", "hcm" or "hcl" (Evo 2)."""
    hidden = c["hidden_size"]
    if kind in ("hyena", "hcl"):
        groups = c.get("hyena_filter_groups", 1)
        return ModalFilterConfig(c["state_size"], hidden // groups if groups > 1 else None, complex=kind == "hyena")
    taps = c[f"{kind}_filter_length"]
    return TapsFilterConfig(taps, c[f"{kind}_filter_groups"], "conv" if taps >= LONG else "corr", taps >= LONG)


def filter_weights(p: Tensors, prefix: str, f: TapsFilterConfig | ModalFilterConfig) -> Tensors:
    """The inner filter's tensors from those of the original filter below `prefix`."""
    named = {"D": p[prefix + "D"]} if f.skip else {}
    if isinstance(f, TapsFilterConfig):
        return named | {"h": ops.squeeze(p[prefix + "h"], 1)}
    if not f.complex:
        return named | {"log_decay": ops.squeeze(p[prefix + "log_poles"], -1), "residues": p[prefix + "residues"]}
    poles, residues = (ops.squeeze(p[prefix + name], 2) for name in ("poles", "residues"))
    re, im = poles[..., 0], poles[..., 1]
    return named | {"log_decay": ops.log(re * re + im * im) * 0.5, "angle": ops.atan2(im, re), "residues": residues}


def convolution_weights(p: Tensors, prefix: str, c: dict[str, Any], f: TapsFilterConfig | ModalFilterConfig) -> Tensors:
    """GatedConv's tensors between its projections, from those of the original filter below `prefix`."""
    rows = channel_order(c)
    named = {"short.weight": _ordered(ops.squeeze(p[prefix + "short_filter_weight"], 1), rows)}
    if c.get("short_filter_bias", True):
        named["short.bias"] = _ordered(p[prefix + "short_filter_bias"], rows)
    return named | {f"filter.{name}": w for name, w in filter_weights(p, prefix, f).items()}
