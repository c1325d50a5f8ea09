"""xLSTM's checkpoints: from the original parameter names and layouts to Ember's.

The functions take and return EmberTensors and only rename, join and permute them, so that gradients pass through.
"""

from __future__ import annotations

from ember_ml import ops
from ember_ml.tensor import EmberTensor

Tensors = dict[str, EmberTensor]


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
    """SLSTM's tensors from those of the original sLSTM layer below `prefix`; its fgate feeds the input gate and its igate the forget gate."""
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
        named[f"in_proj.{part}"] = p[fused] if fused in p else ops.concat([p[f"{prefix}{x}.{part}"] for x in ("q", "k", "v", "ogate_preact")])
        named[f"out_proj.{part}"] = p[f"{prefix}out_proj.{part}"]
    return named


def _conv(p: Tensors, prefix: str) -> Tensors:
    return {"conv.weight": ops.squeeze(p[prefix + "conv1d.conv.weight"], 1), "conv.bias": p[prefix + "conv1d.conv.bias"]}
