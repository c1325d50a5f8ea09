"""Tables that several families of transformers share."""

from __future__ import annotations

from typing import Any

from ember_ml.interop.rules import WEIGHT, Part, Source, Table, empty, first_of, joined, stacked
from ember_ml.interop.fields import Fields

#: SelfAttention of q_proj, k_proj, v_proj, o_proj
ATTENTION: Table = {
    "in_proj.weight": joined("q_proj.weight", "k_proj.weight", "v_proj.weight"),
    "in_proj.bias": joined("q_proj.bias", "k_proj.bias", "v_proj.bias"),
    "out_proj.weight": "o_proj.weight", "out_proj.bias": "o_proj.bias",
    "q_norm.weight": "q_norm.weight", "k_norm.weight": "k_norm.weight",
}


def gated_mlp(gate: str = "gate_proj", up: str = "up_proj", down: str = "down_proj") -> Table:
    """GatedMLP of three linear maps."""
    return {f"{ours}.{part}": f"{theirs}.{part}" for ours, theirs in (("glu.gate", gate), ("glu.up", up), ("down", down))
            for part in ("weight", "bias")}


def sparse_moe(count: int, router: Source, fused: str = "experts.", single: str = "experts.", gate: str = "gate_proj", up: str = "up_proj",
               down: str = "down_proj", bias: Source | None = None) -> Table:
    """SparseMoE of `count` gated experts: below `fused` in transformers' own layout, or below `single` an expert at a time, as published."""
    each = single + "{e}.{name}.weight"
    return {
        "router.weight": router, "router.bias": bias or empty((count,)),
        "experts.w1": first_of((fused + "gate_up_proj", fused + "gate_up_proj"), (each.format(e=0, name=gate), stacked(each, count, gate, up))),
        "experts.w2": first_of((fused + "down_proj", fused + "down_proj"), (each.format(e=0, name=down), stacked(each, count, down))),
    }


def ends(embedding: str, norm: str, tied: bool, norm_table: Table = WEIGHT, head: str = "lm_head.") -> tuple[list[Part], tuple[str, ...]]:
    """(parts, ignored names) of what stands before and after the layers."""
    parts = [Part("embedding.", embedding, WEIGHT), Part("norm.", norm, norm_table), Part("head.", head, WEIGHT)]
    return parts, ("*rotary_emb.inv_freq", *((head + "weight",) if tied else ()))


def block(layer: str, config: dict[str, Any], norm: str, norm_config: dict[str, Any]) -> dict[str, Any]:
    """One pre-norm entry of a model's blocks."""
    return {"layer": layer, "layer_config": config, "norm": norm, "norm_config": norm_config}


def language_model(c: Fields, blocks: list[dict[str, Any]], norm: str, norm_config: dict[str, Any], tied: bool, **fields) -> dict[str, Any]:
    """ModelConfig's fields."""
    return {"blocks": blocks, "vocab_size": c.size("vocab_size"), "norm": norm, "norm_config": norm_config,
            "head": "tied" if tied else "dense", "defaults": {"d_input": c.size("hidden_size")}, **fields}
