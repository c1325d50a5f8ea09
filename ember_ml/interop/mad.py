"""MAD-Lab's language models.

MAD-Lab saves no configuration; put a config.json beside the weights with the arguments of its LanguageModel: dim, vocab_size, max_length, norm
("rmsnorm" or "layernorm"), layers (names as in its registry: hyena, mamba, mlp, swiglu) and, where they differ from the layers' own
defaults, layer_cfgs (a table for each layer).
"""

from __future__ import annotations

from typing import Any

from ember_ml import ops
from ember_ml.errors import ConfigError, show
from ember_ml.interop.fields import Fields
from ember_ml.interop.rules import AFFINE, Layout, Part, Source, Table, first_of, flat, squeezed
from ember_ml.nn.models import ModelConfig

_PARTS = ("weight", "bias")
MAMBA: Table = {**{n: n for n in ("in_proj.weight", "in_proj.bias", "x_proj.weight", "dt_proj.weight", "dt_proj.bias", "A_log", "D", "out_proj.weight",
                                  "out_proj.bias")}, "conv.weight": squeezed("conv1d.weight"), "conv.bias": "conv1d.bias"}
MLP: Table = {f"{ours}.{part}": f"{theirs}.{part}" for ours, theirs in (("fc1", "fc"), ("fc2", "proj")) for part in _PARTS}
SWIGLU: Table = {f"{ours}.{part}": f"{theirs}.{part}" for ours, theirs in (("glu.gate", "w1"), ("glu.up", "w2"), ("down", "w3")) for part in _PARTS}


def _first(name: str) -> Source:
    return lambda p: p[name][0]


def _hyena_table(depth: int) -> Table:
    """The operator; its filter's linear maps are 0, 2, 4, ... of a sequence, with the one sine between them."""
    at = "long_conv.filter."
    maps = {f"filter.layers.{i}.{part}": f"{at}implicit_filter.{2 * i}.{part}" for i in range(depth + 1) for part in _PARTS}
    return {**maps, **{f"{name}.{part}": f"{name}.{part}" for name in ("in_proj", "out_proj") for part in _PARTS},
            "short_weight": squeezed("short_filter.weight"), "short_bias": "short_filter.bias",
            "D": lambda p: ops.expand_dims(p["long_conv.bias"], 0), "filter.out.weight": f"{at}implicit_filter.{2 * depth + 2}.weight",
            "filter.freq": _first(at + "implicit_filter.1.freq"), "filter.t": flat(at + "pos_emb.t"), "filter.z": _first(at + "pos_emb.z"),
            "filter.deltas": flat(at + "modulation.deltas")}


def _layer(name: str, c: Fields, dim: int, max_length: int) -> tuple[str, dict[str, Any], Table]:
    """(registered layer, its config, its table) of one of MAD's layers."""
    if name == "hyena":
        conv = c.table("long_conv_cfg")
        f = conv.table("filter_cfg")
        if conv.get("filter_cls") != "implicit" or c.get("order", 2) != 2 or c.get("num_heads", 1) != 1 or f.flag("nested") or f.flag("normalized"):
            raise ConfigError("mad: expected a hyena of order 2 with one head and an implicit filter, neither nested nor normalized")
        depth = f.size("depth_implicit", 2, most=1000)
        config = {"l_max": max_length, "d_inner": c.size("inner_factor", 2) * dim, "groups": c.size("proj_groups", 4),
                  "short_taps": c.size("short_filter_order", 3),
                  "filter": {"features": f.size("emb_dim", 3), "width": f.size("order", 16), "frequency": f.number("w", 1.0), "depth": depth,
                             "shift": 0.0, "learn_positions": True, "window": f.flag("modulate", True)}}
        return "hyena", config, _hyena_table(depth)
    if name == "mamba":
        rank = None if c.get("dt_rank", "auto") == "auto" else c.size("dt_rank")
        return "mamba", {"d_state": c.size("d_state", 16), "expand": c.size("expand", 2), "taps": c.size("d_conv", 4), "bias": c.flag("bias"),
                         "dt_rank": rank, "conv_bias": c.flag("conv_bias", True)}, MAMBA
    if name == "mlp":
        return "mlp", {"d_inner": c.size("dim_inner", 4 * dim), "bias": c.flag("bias", True)}, MLP
    if name == "swiglu":
        return "gated_mlp", {"multiple_of": c.size("multiple_of", 16), "bias": c.flag("bias")}, SWIGLU
    raise ConfigError(f"mad: expected layers among hyena, mamba, mlp and swiglu; received {show(name)}")


def layout(c: dict[str, Any]) -> Layout:
    """The Layout of a LanguageModel. Raises ConfigError for layers and options that this reader does not have."""
    f, norms = Fields(c, "mad"), {"rmsnorm": "rms_norm", "layernorm": "layer_norm"}
    dim, norm, names = f.size("dim"), f.word("norm", "rmsnorm"), f.get("layers")
    if norm not in norms or f.get("position_embeds") is not None:
        raise ConfigError(f"mad: expected norm 'rmsnorm' or 'layernorm' and no position_embeds; received {norm!r}, {show(f.get('position_embeds'))}")
    given = f.get("layer_cfgs") or [{}] * len(names if isinstance(names, list) else "")
    if not isinstance(names, list) or not isinstance(given, list) or len(given) != len(names):
        raise ConfigError(f"mad: expected a list of layers and, if any, layer_cfgs for each; received {show(names)} and {show(given)}")
    parts = [Part("embedding.", "token_embeds.", AFFINE), Part("norm.", "unembed.", _either("norm", "0")), Part("head.", "unembed.", _either("lm_head", "1"))]
    blocks = []
    for i, (name, options) in enumerate(zip(names, given)):
        layer, config, table = _layer(name, Fields(options, f"mad's layer {i}"), dim, f.size("max_length"))
        blocks.append({"layer": layer, "layer_config": config})
        parts.append(Part(f"blocks.{i}.norm.", f"model.{i}.", _either("norm", "0")))
        parts.append(Part(f"blocks.{i}.layer.", f"model.{i}.", {ours: _in_either(source) for ours, source in table.items()}))
    return Layout(ModelConfig(blocks, f.size("vocab_size"), norms[norm], "dense", head_bias=True, defaults={"d_input": dim, "norm": norms[norm]}), parts,
                  ("*.implicit_filter.*.freq",))


def _either(new: str, old: str) -> Table:
    """Weight and bias of a part that has a name, or a number in older versions."""
    return {part: first_of((f"{new}.{part}", f"{new}.{part}"), (f"{old}.{part}", f"{old}.{part}")) for part in _PARTS}


def _in_either(source: Source) -> Source:
    """A source below "layer.", or below "1." in older versions."""
    def read(p):
        inner = p.below("layer.") if any(name.startswith(p.prefix + "layer.") for name in p.state) else p.below("1.")
        return inner[source] if isinstance(source, str) else source(inner)
    return read
