"""Checkpoints of StripedHyena and of Evo 2 (vortex): from the original parameter names and layouts to Ember's.

The functions take and return EmberTensors and only rename, permute and convert them by ops, so that gradients pass through. What the
originals do to channels at run time (interleaving, splitting within heads, exchanging gates) is done to the rows of the weights here.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ember_ml import ops
from ember_ml.nn.layers import ModalFilterConfig, TapsFilterConfig
from ember_ml.tensor import EmberTensor

Tensors = dict[str, EmberTensor]

#: vortex convolves filters from this length on by FFT, first tap on the present and with a direct path; shorter ones the other way
LONG = 128


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

    def ordered(x):
        return ops.take(x, ops.tensor(rows, like=x), axis=0)

    named = {"short.weight": ordered(ops.squeeze(p[prefix + "short_filter_weight"], 1))}
    if c["short_filter_bias"]:
        named["short.bias"] = ordered(p[prefix + "short_filter_bias"])
    return named | {f"filter.{name}": w for name, w in filter_weights(p, prefix, f).items()}
