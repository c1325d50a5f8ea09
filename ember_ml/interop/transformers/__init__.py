"""Checkpoints of Hugging Face's transformers: one function a family makes a Layout of its config.json."""

from __future__ import annotations

from collections.abc import Callable

from ember_ml.interop.rules import Layout
from ember_ml.interop.fields import Fields
from ember_ml.interop.transformers.lfm2 import lfm2, lfm2_moe
from ember_ml.interop.transformers.llama import llama, mixtral, qwen3_moe
from ember_ml.interop.transformers.mamba import falcon_h1, jamba, mamba, mamba2
from ember_ml.interop.transformers.recurrent import recurrent_gemma, rwkv, xlstm

#: model_type of a config.json -> reader
FAMILIES: dict[str, Callable[[Fields], Layout]] = {
    "falcon_h1": falcon_h1, "jamba": jamba, "lfm2": lfm2, "lfm2_moe": lfm2_moe, "llama": llama, "mamba": mamba, "mamba2": mamba2,
    "mixtral": mixtral, "qwen3_moe": qwen3_moe, "recurrent_gemma": recurrent_gemma, "rwkv": rwkv, "xlstm": xlstm,
}

__all__ = ["FAMILIES", "Fields"]
