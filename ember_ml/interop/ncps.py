"""Checkpoints of the ncps library (torch): LTC, CfC and wired CfC, from its parameter names and layouts to Ember's.

The functions take and return EmberTensors and only rename, join and reshape them, so that gradients pass through. The wiring is no
part of a checkpoint; masks are, and come along.
"""

from __future__ import annotations

from ember_ml import ops
from ember_ml.interop.asked import Asked
from ember_ml.nn.layers import LTC, CfC, CfCConfig, LTCConfig, WiredCfC, WiredCfCConfig
from ember_ml.nn.layers.sequence_mixing.recurrent.cfc import Heads
from ember_ml.tensor import EmberTensor

Tensors = dict[str, EmberTensor]
HEADS = {"default": ("ff1", "ff2", "time_a", "time_b"), "no_gate": ("ff1", "ff2", "time_a", "time_b"), "pure": ("ff1",)}


def read(state: Tensors, config: LTCConfig | CfCConfig | WiredCfCConfig) -> LTC | CfC | WiredCfC:
    """The layer of an original state dict.

    Args:
        state: tensors by their original names, on the engine where the layer is to live.
        config: sizes and wiring, as the original was built with them; a wired CfC's needs wired_gate=False.

    Raises WeightsError naming a tensor that is missing or has no place in the layer; ShapeError for one of another shape.
    """
    layer = {LTCConfig: LTC, CfCConfig: CfC, WiredCfCConfig: WiredCfC}[type(config)](config)
    asked = Asked("ncps", state)
    layer.update(weights(layer, asked))
    asked.all_read(f"a {type(layer).__name__} of this config")
    return layer


def weights(layer: LTC | CfC | WiredCfC, p: Tensors) -> Tensors:
    """The layer's tensors, by Ember's names, from those of the original sequence class."""
    named = {}
    if isinstance(layer, LTC):
        named = ltc_weights(layer, p, "rnn_cell.")
    elif isinstance(layer, CfC):
        for i in range(len(layer.backbone)):              # Linear and activation in turn
            named |= {f"backbone.{i}.{part}": p[f"rnn_cell.backbone.{2 * i}.{part}"] for part in ("weight", "bias")}
        named |= {f"heads.{name}": w for name, w in head_weights(layer.heads, p, "rnn_cell.", layer.config.mode).items()}
    else:
        for i, cell in enumerate(layer.cells):
            found = head_weights(cell, p, f"rnn_cell.layer_{i}.", layer.config.mode)
            named |= {f"cells.{i}.{name}": w for name, w in found.items()}
    if getattr(layer, "out_proj", None) is not None:
        named |= {f"out_proj.{part}": p[f"fc.{part}"] for part in ("weight", "bias")}
    if layer.memory is not None:
        named |= {f"memory.{name}": w for name, w in memory_weights(p, "lstm.", layer.units).items()}
    return named


def ltc_weights(layer: LTC, p: Tensors, prefix: str = "") -> Tensors:
    """LTC's tensors from those of the original cell below `prefix`."""
    renamed = {"c": "cm", "mask": "sparsity_mask", "sensory_mask": "sensory_sparsity_mask"}
    return {name: p[prefix + renamed.get(name, name)] for name in layer.tensors() if not name.startswith("memory.")}


def head_weights(heads: Heads, p: Tensors, prefix: str, mode: str) -> Tensors:
    """The tensors of Heads from those of the original CfC cell below `prefix`."""
    names = HEADS[mode]
    found = {part: ops.concat([p[f"{prefix}{name}.{part}"] for name in names]) for part in ("weight", "bias")}
    if mode == "pure":
        found |= {"w_tau": p[prefix + "w_tau"][0], "amplitude": p[prefix + "A"][0]}
    if heads.mask is not None:
        one = p[prefix + "sparsity_mask"]
        found["mask"] = ops.concat([one if name.startswith("ff") else one.ones_like() for name in names])
    return found


def memory_weights(p: Tensors, prefix: str, units: int) -> Tensors:
    """MixedMemory's tensors: the original has its gates as g, i, f, o and adds 1 to f outside the bias."""
    def gates(w):
        g, i, f, o = ops.split(w, 4, axis=0)
        return i, f, g, o

    i, f, g, o = gates(p[prefix + "input_map.bias"])
    return {"weight_ih": ops.concat(gates(p[prefix + "input_map.weight"])),
            "weight_hh": ops.concat(gates(p[prefix + "recurrent_map.weight"])), "bias": ops.concat([i, f + 1.0, g, o])}
