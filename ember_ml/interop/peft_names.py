"""The names of a model's linear maps in the library that it comes from: what adapters in peft's files are named by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ember_ml.errors import ConfigError
from ember_ml.interop.checkpoint import read_config
from ember_ml.interop.rules import Joined
from ember_ml.interop.transformers import FAMILIES, Fields
from ember_ml.nn.adapters.lora import maps
from ember_ml.nn.module import Module


def peft_names(model: Module, original: str | Path | dict[str, Any]) -> dict[str, str]:
    """Ember's name of each linear map -> its name in transformers, for the maps that are linear maps there, too.

    Args:
        model: converted from there. original: the folder of the checkpoint, or its config.json as a dict.

    Raises ConfigError for a family that transformers or Ember does not have.
    """
    c = original if isinstance(original, dict) else read_config(Path(original))[1]
    family = c.get("model_type")
    if family not in FAMILIES:
        raise ConfigError(f"peft_names: expected a configuration of transformers with model_type {', '.join(FAMILIES)}; received {family!r}")
    sources = {part.ember + end: (part.original, source) for part in FAMILIES[family](Fields(c, family)).parts for end, source in part.table.items()}
    found = {}
    for name, (dense, part) in maps(model).items():
        layer = name if part == "all" else name.removesuffix(f".{part}")
        prefix, source = sources.get(f"{layer}.weight", ("", None))
        if isinstance(source, Joined) and dense.parts is not None and len(source.names) == len(dense.parts):
            source = source.names[list(dense.parts).index(part)]
        if isinstance(source, str):
            found[name] = (prefix + source).removesuffix(".weight")
    return found
