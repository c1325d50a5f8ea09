"""Adapters in the files of Hugging Face's `peft`: adapter_config.json and adapter_model.safetensors in one folder.

A map that peft calls P has two tensors, `base_model.model.P.lora_A.weight` (rank, d_input) and `base_model.model.P.lora_B.weight`
(d_output, rank). P is Ember's own name of the map (see `adapters.maps`), or the one that the model has elsewhere: where a llama's is
"model.layers.0.self_attn.q_proj", `ember_ml.interop.peft_names` tells which is which, and the files then are good for both sides.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from ember_ml import weights
from ember_ml.errors import ConfigError, WeightsError, show
from ember_ml.nn.adapters.lora import LoRAConfig, adapters, attach, maps, parts_of
from ember_ml.nn.module import Module
from ember_ml.ops import random, stack, swap_axes
from ember_ml.registry import from_dict, read_table
from ember_ml.tensor import EmberTensor
from ember_ml.weights.atomic import replace

CONFIG, TENSORS, PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."

_KEY = re.compile(re.escape(PREFIX) + r"(?P<map>.+)\.lora_(?P<matrix>[AB])\.weight", re.DOTALL)

#: fields of peft's configuration that would change what is computed, and the values under which they do not
_PLAIN = {"bias": ("none",), "use_dora": (False, None), "fan_in_fan_out": (False,), "modules_to_save": (None, []),
          "alpha_pattern": ({}, None), "layer_replication": (None,), "trainable_token_indices": (None,), "lora_bias": (False, None),
          "alora_invocation_tokens": (None,), "use_qalora": (False, None), "target_parameters": (None, []),
          "arrow_config": (None,),
          # the other ways to start change the weights beside the pair, too
          "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva")}


def save_peft(model: Module, folder: str | Path, names: dict[str, str] | None = None, base: str | None = None):
    """Writes the LoRA of a model as peft does; each of the two files is replaced whole or not at all.

    Args:
        folder: made if it is not there. names: Ember's name of a map -> the name it has elsewhere; None for Ember's names.
        base: where the model that was adapted is found, kept for the reader.

    Raises ConfigError for a model without LoRA, WeightsError for an adapted map that `names` does not know.
    """
    found = adapters(model)
    if not found:
        raise ConfigError("save_peft: expected a model with LoRA, got one without; see add_lora")
    pairs = {f"{name}.{part}" if part != "all" else name: pair for name, lora in found.items() for part, pair in lora.pairs.items()}
    if names is not None and (unknown := [name for name in pairs if name not in names]):
        raise WeightsError(f"save_peft: {unknown[0]} has no name in the other model; its maps are {', '.join(list(names)[:6])}, ...")
    named = {name if names is None else names[name]: pair for name, pair in pairs.items()}
    config = next(iter(found.values())).config
    ranks = {name: pair.A.shape[0] for name, pair in named.items() if pair.A.shape[0] != config.rank}
    values = {"peft_type": "LORA", "task_type": "CAUSAL_LM" if names else None, "base_model_name_or_path": base, "inference_mode": True,
              "r": config.rank, "lora_alpha": config.alpha, "lora_dropout": config.dropout, "use_rslora": config.rank_stabilized,
              "rank_pattern": ranks, "target_modules": sorted(named), "bias": "none"}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights.save(folder / TENSORS, {f"{PREFIX}{name}.lora_{matrix}.weight": tensor for name, pair in named.items()
                                    for matrix, tensor in (("A", pair.A), ("B", swap_axes(pair.B)))})
    replace(folder / CONFIG, [(json.dumps(values, indent=2, sort_keys=True) + "\n").encode()])


def load_peft(model: Module, folder: str | Path, names: dict[str, str] | None = None) -> list[str]:
    """Gives a model the LoRA of a folder that `save_peft` or peft wrote, and freezes the rest. Returns the names of the adapted maps.

    Args:
        model: without LoRA. names: as for `save_peft`.

    Raises ConfigError for a kind of adapter, or an option, that would compute something else; WeightsError for tensors that are damaged,
    missing, unknown or of another shape. Then nothing has changed.
    """
    folder = Path(folder)
    config, rank_of = _read_config(folder)
    if not (folder / TENSORS).is_file():
        raise WeightsError(f"{folder}: expected {TENSORS}; there is none" + (
            "; adapter_model.bin may run code when it is read: save it again with safetensors" if (folder / "adapter_model.bin").is_file() else ""))
    every, device = maps(model), next(iter(model.tensors().values())).device
    ours = {name if names is None else names[name]: name for name in every if names is None or name in names}
    pairs = {ours[place]: pair for place, pair in _read_pairs(folder / TENSORS, ours, device).items()}
    theirs = {name: place for place, name in ours.items()}
    for name, pair in pairs.items():
        dense, part = every[name]
        rank = rank_of(theirs[name])
        want, got = {"A": (rank, dense.weight.shape[1]), "B": (parts_of(dense)[part], rank)}, {m: t.shape for m, t in pair.items()}
        if want != got or any(t.dtype.kind != "float" for t in pair.values()):
            raise WeightsError(f"{folder / TENSORS}: expected {theirs[name]} with lora_A of shape {want['A']} and lora_B of shape {want['B']}, "
                               f"got {got}")
    attach(model, {name: pair["A"].shape[0] for name, pair in pairs.items()}, config, random.key(0, device=device))
    for name, pair in pairs.items():
        dense, part = every[name]
        A, B = (pair[m].astype("float32") for m in "AB")  # as new pairs are; wider ones could not be saved again
        dense.adapter.pairs[part].A = A
        dense.adapter.pairs[part].B = stack([B[:, j] for j in range(B.shape[1])])     # transposed and laid out anew, as a checkpoint gives it
    return list(pairs)


def _read_pairs(path: Path, ours: dict[str, str], device: str) -> dict[str, dict[str, EmberTensor]]:
    """{"A", "B"} of each map by the name that it has in the file. Raises WeightsError for a tensor that is none of them."""
    found: dict[str, dict[str, EmberTensor]] = {}
    for key, tensor in weights.load(path, device=device)[0].items():
        match = _KEY.fullmatch(key)
        if match is None or match["map"] not in ours:
            raise WeightsError(f"{path}: {show(key)} is no LoRA matrix of a linear map of this model; its maps are "
                               f"{', '.join(list(ours)[:6])}, ...; pass names= for those of another library's model")
        found.setdefault(match["map"], {})[match["matrix"]] = tensor
    return found


def _read_config(folder: Path):
    """(LoRAConfig, function from a map's name to its rank) of a stranger's configuration, checked."""
    if not (folder / CONFIG).is_file():
        raise WeightsError(f"{folder}: expected a folder with {CONFIG} and {TENSORS}; there is no {CONFIG}")
    values = read_table(folder / CONFIG)
    if values.get("peft_type") != "LORA":
        raise ConfigError(f"{folder / CONFIG}: expected peft_type 'LORA', received {show(values.get('peft_type'))}")
    for name, plain in _PLAIN.items():
        if name in values and values[name] not in plain:
            raise ConfigError(f"{folder / CONFIG}: expected {name} to be {plain[0]!r}, for which Ember computes the same; received {show(values[name])}")
    fields = {"rank": values.get("r"), "alpha": values.get("lora_alpha"), "dropout": values.get("lora_dropout", 0.0),
              "rank_stabilized": values.get("use_rslora", False)}
    try:
        config = from_dict(LoRAConfig, fields)
    except ConfigError as e:
        raise ConfigError(f"{folder / CONFIG}: {e}") from None
    pattern = values.get("rank_pattern") or {}
    if not isinstance(pattern, dict) or not all(type(r) is int and r > 0 for r in pattern.values()):
        raise ConfigError(f"{folder / CONFIG}: expected rank_pattern to map names to ranks, received {show(pattern)}")
    return config, lambda place: next((r for name, r in pattern.items() if place == name or place.endswith(f".{name}")), config.rank)
