"""Registered blocks that only choose layers: a preset names them, each layer's own config checks the options.

    blocks.instantiate("transformer", d_input=64, heads=4, d_inner=256)       a module
    {block = "transformer", repeat = 6, heads = 4}                            an entry of a model's list of blocks
"""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any

import pydantic
from pydantic_core import ArgsKwargs

from ember_ml.errors import ConfigError
from ember_ml.nn.blocks.base import Block, BlockConfig, beside
from ember_ml.nn.module import Module
from ember_ml.ops import random
from ember_ml.registry import Rate, Size, blocks, config, layers
from ember_ml.tensor import EmberTensor


def gather_options(cls, values):
    """What a config class is given, with keys that are none of its fields moved into its field `options`."""
    fields = values.kwargs if isinstance(values, ArgsKwargs) else values      # called, or a dict within a config
    if not isinstance(fields, dict):
        return values
    own = {f.name for f in dataclasses.fields(cls)}
    given = {k: v for k, v in fields.items() if k in own}
    options = fields.get("options", {})
    if isinstance(options, dict):                            # else pydantic tells
        given["options"] = {**options, **{k: v for k, v in fields.items() if k not in own}}
    return ArgsKwargs(values.args, given) if isinstance(values, ArgsKwargs) else given


@config
class PresetConfig:
    """d_input: channels. norm: of every layer, None for the preset's own. norm_config, residual, residual_config, prenorm,
    dropout: as in BlockConfig, for every layer. options: fields of the layers' configs; each goes to the layers that
    have it, and they may as well be given beside the other fields.
    """

    d_input: Size
    norm: str | None = None
    norm_config: dict = dataclasses.field(default_factory=dict)
    residual: str | None = None
    residual_config: dict = dataclasses.field(default_factory=dict)
    prenorm: bool = True
    dropout: Rate = 0.0
    options: dict = dataclasses.field(default_factory=dict)

    @pydantic.model_validator(mode="before")
    @classmethod
    def _gather(cls, values):
        return gather_options(cls, values)


class PresetBlock(Module):
    """The layers of a preset, a Block each, one after the other.

    Args:
        config: a PresetConfig; or give its fields: `HyenaBlock(d_input, l_max=1024, ...)`. key: random key of the initial weights.

    forward and step return (y, states), one state per layer.
    """

    Config = PresetConfig

    #: of a derived class: the norm, and the registered layers with the fields that the preset sets
    norm: str
    parts: tuple[tuple[str, dict], ...]

    def __init__(self, config: PresetConfig | int, key: EmberTensor | None = None, **fields):
        self.config = config = config if isinstance(config, PresetConfig) else PresetConfig(d_input=config, **fields)
        written = self.expand(**{f.name: getattr(config, f.name) for f in dataclasses.fields(config)})
        keys = random.split(key if key is not None else random.next_key(), max(2, len(written)))
        self.blocks = [Block(b, key=k) for b, k in zip(written, keys)]

    @classmethod
    def expand(cls, **fields) -> list[BlockConfig]:
        """The BlockConfigs that the preset stands for, of PresetConfig's fields. Raises ConfigError for an unknown option."""
        c = PresetConfig(**fields)
        known = {name: {f.name for f in dataclasses.fields(layers.get(name).Config)} - {"d_input"} for name, _ in cls.parts}
        for option in c.options:
            if not any(option in names for names in known.values()):
                every = sorted({"repeat"}.union(*known.values(), (f.name for f in dataclasses.fields(PresetConfig))))
                near = difflib.get_close_matches(option, every, 3, 0.5)
                raise ConfigError(f"{cls.__name__}: unknown key {option!r}; "
                                  + (f"did you mean {', '.join(near)}?" if near else f"it takes {', '.join(every)}"))
        common: dict[str, Any] = {name: getattr(c, name) for name in ("d_input", "norm_config", "residual", "residual_config",
                                                                     "prenorm", "dropout")}
        return [BlockConfig(layer=name, norm=c.norm or cls.norm, **common,
                            layer_config={**own, **{k: v for k, v in c.options.items() if k in known[name]}})
                for name, own in cls.parts]

    def forward(self, x: EmberTensor, state: list | None = None) -> tuple[EmberTensor, list]:
        """(B, L, d_input) to the same shape."""
        return self._run(x, state, "forward")

    def step(self, x: EmberTensor, state: list) -> tuple[EmberTensor, list]:
        """One position, (B, d_input)."""
        return self._run(x, state, "step")

    def initial_state(self, batch: int, dtype="float32") -> list:
        """The states of all layers before the first position."""
        with beside(self):
            return [block.initial_state(batch, dtype) for block in self.blocks]

    def _run(self, x, state, form: str):
        after = []
        for i, block in enumerate(self.blocks):
            x, s = getattr(block, form)(x, None if state is None else state[i])
            after.append(s)
        return x, after


@blocks.register("transformer")
class TransformerBlock(PresetBlock):
    """Causal self-attention, then a gated MLP. Source: Vaswani et al. 2017; Touvron et al. 2023, LLaMA."""

    norm, parts = "rms_norm", (("self_attention", {}), ("gated_mlp", {}))


@blocks.register("lstm")
class LSTMBlock(PresetBlock):
    """An LSTM alone. Source: Hochreiter and Schmidhuber 1997."""

    norm, parts = "layer_norm", (("lstm", {}),)


@blocks.register("mamba")
class MambaBlock(PresetBlock):
    """A selective state space alone. Source: Gu and Dao 2023."""

    norm, parts = "rms_norm", (("mamba", {}),)


@blocks.register("hyena")
class HyenaBlock(PresetBlock):
    """A Hyena operator, then an MLP. Source: Poli et al. 2023, Hyena Hierarchy."""

    norm, parts = "layer_norm", (("hyena", {}), ("mlp", {}))


@blocks.register("fftconv")
class FFTConvBlock(PresetBlock):
    """A long convolution by FFT with explicit taps, then an MLP. Source: Fu et al. 2023, Simple Hardware-Efficient Long
    Convolutions for Sequence Modeling.
    """

    norm, parts = "layer_norm", (("long_conv", {}), ("mlp", {}))


@blocks.register("moe")
class MoEBlock(PresetBlock):
    """Causal self-attention, then a sparse mixture of experts. Source: Shazeer et al. 2017; Jiang et al. 2024, Mixtral."""

    norm, parts = "rms_norm", (("self_attention", {}), ("moe", {}))


@blocks.register("rwkv")
class RWKVBlock(PresetBlock):
    """Time mixing, then channel mixing. Source: Peng et al. 2023, RWKV: Reinventing RNNs for the Transformer Era."""

    norm, parts = "layer_norm", (("rwkv4", {}), ("rwkv_channel_mixing", {}))


@blocks.register("hybrid")
class HybridBlock(PresetBlock):
    """Several mixers on one input, summed, then a gated MLP; `mixers` is a list as ParallelConfig takes it.
    Source: Zuo et al. 2025, Falcon-H1.
    """

    norm, parts = "rms_norm", (("parallel", {}), ("gated_mlp", {}))
