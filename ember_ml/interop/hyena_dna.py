"""HyenaDNA's checkpoints: from the original parameter names and layouts to Ember's.

The functions take and return EmberTensors and only rename, reshape and permute them, so that gradients pass through.
"""

from __future__ import annotations

from ember_ml import ops
from ember_ml.errors import ConfigError, WeightsError, show
from ember_ml.interop.fields import Fields
from ember_ml.nn.layers import Hyena, HyenaFilter
from ember_ml.nn.models import HyenaDNA, HyenaDNAConfig, Model
from ember_ml.tensor import EmberTensor

Tensors = dict[str, EmberTensor]

#: names in a checkpoint that a language model needs not: the tied head, what its trainer counted, and the sines' further names for the
#: one frequency
IGNORED = ("lm_head.weight", "*torchmetrics*", "*metrics*", "*.implicit_filter.*.freq")


def read(state: Tensors, config: HyenaDNAConfig, order_last: bool = False) -> HyenaDNA:
    """The model of an original state dict.

    Args:
        state: tensors by their original names, on the engine where the model is to live; a tied head is not read.
        config: sizes, as the original's configuration has them; the filter needs learn_positions=True.
        order_last: the checkpoint counts filter channels '(d o)', as the full repository does, and not '(o d)', as the
            standalone script does; the same for order 2.

    Raises WeightsError naming a tensor that is missing; ShapeError for one of another shape.
    """
    model = HyenaDNA(config)
    try:
        model.update(model_weights(model, state, config.order - 1 if order_last else 1))
    except KeyError as e:
        raise WeightsError(f"hyena_dna: expected a tensor {e.args[0]!r} in the checkpoint; it has {', '.join(list(state)[:4])}, ...") from None
    return model


def model_config(c: dict) -> tuple[HyenaDNAConfig, int]:
    """(config, order_last) of a published config.json; the published models count filter channels as the full repository does.

    Raises ConfigError for options that Ember has no equal of.
    """
    f = Fields(c, "hyena_dna")
    layer = f.table("layer")
    if c.get("max_position_embeddings") or c.get("attn_layer_idx"):
        raise ConfigError("hyena_dna: expected no position embeddings and no attention layers; received max_position_embeddings="
                          f"{show(c.get('max_position_embeddings'))}, attn_layer_idx={show(c.get('attn_layer_idx'))}")
    order = layer.size("order", 2, most=1000)
    filters = dict(width=layer.size("filter_order", 64), features=layer.size("emb_dim", 3), depth=layer.size("num_inner_mlps", 2, most=1000),
                   frequency=layer.number("w", 1.0), shift=layer.number("shift", 0.0), learn_positions=True,
                   window=layer.flag("modulate", True), normalized=layer.flag("normalized"))
    width = f.size("d_model")
    return HyenaDNAConfig(f.size("vocab_size"), width, f.layers("n_layer"), layer.size("l_max"), f.size("d_inner", 4 * width), order,
                          layer.size("short_filter_order", 3), filters, vocab_multiple=f.size("pad_vocab_size_multiple", 8)), order - 1


def model_weights(m: Model, p: Tensors, order_last: int = 1) -> Tensors:
    """Tensors of a HyenaDNA model, by Ember's names, from those of the original below "backbone."."""
    named = {"embedding.weight": p["backbone.embeddings.word_embeddings.weight"]}
    for i in range(len(m.blocks) // 2):
        named |= block_weights(m.blocks[2 * i:2 * i + 2], p, f"backbone.layers.{i}.", f"blocks.{2 * i}.", f"blocks.{2 * i + 1}.",
                               order_last)
    return named | {f"norm.{part}": p[f"backbone.ln_f.{part}"] for part in ("weight", "bias")}


def block_weights(pair, p: Tensors, prefix: str, first: str, second: str, order_last: int = 1) -> Tensors:
    """Tensors of a mixer's and an MLP's Block from the one original block below `prefix`; they are named first... and second...."""
    named = {}
    for norm, block in (("norm1", first), ("norm2", second)):
        named |= {f"{block}norm.{part}": p[f"{prefix}{norm}.{part}"] for part in ("weight", "bias")}
    for layer in ("fc1", "fc2"):
        named |= {f"{second}layer.{layer}.{part}": p[f"{prefix}mlp.{layer}.{part}"] for part in ("weight", "bias")}
    mixer = pair[0].layer
    inner = operator_weights(mixer, p, order_last, prefix + "mixer.") if isinstance(mixer, Hyena) else attention_weights(p, prefix + "mixer.")
    return named | {f"{first}layer.{name}": w for name, w in inner.items()}


def attention_weights(p: Tensors, prefix: str) -> Tensors:
    """Tensors of SelfAttention from those of the original attention below `prefix`."""
    return {f"{ember}.{part}": p[f"{prefix}{original}.{part}"] for ember, original in (("in_proj", "Wqkv"), ("out_proj", "out_proj"))
            for part in ("weight", "bias")}


def operator_weights(m: Hyena, p: Tensors, order_last: int, prefix: str = "") -> Tensors:
    """Tensors of Hyena, by Ember's names, from those of the original operator below `prefix`."""
    names = ("in_proj.weight", "in_proj.bias", "out_proj.weight", "out_proj.bias")
    named = {name: p[prefix + name] for name in names}
    named["short_weight"] = ops.squeeze(p[prefix + "short_filter.weight"], 1)
    named["short_bias"] = p[prefix + "short_filter.bias"]
    named["D"] = ops.reshape(by_order(p[prefix + "filter_fn.bias"], order_last), m.D.shape)
    if m.config.order_scale:                               # one entry more than there are convolutions, never used
        named["scale"] = p[prefix + "ord_proj_w"][:m.config.order - 1, 0, 0]
    inner = filter_weights(m.filter, p, prefix + "filter_fn.", order_last)
    return named | {f"filter.{name}": w for name, w in inner.items()}


def filter_weights(f: HyenaFilter, p: Tensors, prefix: str = "", order_last: int = 1) -> Tensors:
    """Tensors of HyenaFilter, by Ember's names, from those of the original filter below `prefix`.

    order_last: number of convolutions, where the original counts filter channels '(d o)' and not, as Ember, '(o d)'.
    """
    named = {"t": ops.reshape(p[prefix + "pos_emb.t"], (-1,)), "z": p[prefix + "pos_emb.z"][0]}
    for i in range(len(f.layers)):                         # 0, 2, 4, ...: linear maps; between them the one sine
        for part in ("weight", "bias"):
            named[f"layers.{i}.{part}"] = p[f"{prefix}implicit_filter.{2 * i}.{part}"]
    if f.layers:
        named["freq"] = p[prefix + "implicit_filter.1.freq"][0]
    last = p[f"{prefix}implicit_filter.{2 * len(f.layers)}.weight"]
    named["out.weight"] = by_order(last, order_last)
    if f.config.window:
        named["deltas"] = by_order(ops.reshape(p[prefix + "modulation.deltas"], (-1,)), order_last)
    return named


def by_order(w, orders: int):
    """Rows '(d o) ...' as '(o d) ...'."""
    rows = ops.reshape(w, (w.shape[0] // orders, orders, *w.shape[1:]))
    return ops.reshape(ops.swap_axes(rows, 0, 1), w.shape)
