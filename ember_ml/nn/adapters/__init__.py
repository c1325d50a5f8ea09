"""Adapters: a few new parameters beside a frozen model."""

from ember_ml.nn.adapters.fuse import Fused, fuse
from ember_ml.nn.adapters.lora import LoRA, LoRAConfig, adapters, add_lora, maps
from ember_ml.nn.adapters.peft import load_peft, save_peft
from ember_ml.nn.adapters.run import AdapterConfig, adapt

__all__ = ["Fused", "AdapterConfig", "LoRA", "LoRAConfig", "adapt", "adapters", "add_lora", "fuse", "load_peft", "maps", "save_peft"]
