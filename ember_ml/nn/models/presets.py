"""Registered models that only repeat a registered block: an embedding, n_layer times the block, a norm and a head.

    models.instantiate("transformer", vocab_size=256, d_input=64, n_layer=4, heads=4)
"""

from __future__ import annotations

import dataclasses

import pydantic

from ember_ml.errors import ConfigError
from ember_ml.nn.blocks.presets import gather_options
from ember_ml.nn.models.base import Model
from ember_ml.nn.models.config import Head, ModelConfig
from ember_ml.registry import Count, Rate, Size, blocks, config, models
from ember_ml.tensor import EmberTensor


@config
class StackConfig:
    """d_input: channels. n_layer: how many blocks. vocab_size, head, outputs, pool, vocab_multiple: as in ModelConfig; without a
    vocab_size the model takes channels and has no head unless told. dropout: on the embedding and in the blocks.
    options: further fields of the block (a PresetConfig) and of its layers; they may as well be given beside these.
    """

    d_input: Size
    n_layer: Count
    vocab_size: Size | None = None
    head: Head | None = None
    outputs: Size | None = None
    pool: str = "mean"
    vocab_multiple: Size = 1
    dropout: Rate = 0.0
    options: dict = dataclasses.field(default_factory=dict)

    @pydantic.model_validator(mode="before")
    @classmethod
    def _gather(cls, values):
        return gather_options(cls, values)


class StackModel(Model):
    """A model of equal blocks.

    Args:
        config: see StackConfig. key: random key of the initial weights.

    Saved and loaded as the plain list of blocks that it is. The head is tied to the embedding where none is named.
    """

    Config = StackConfig

    #: of a derived class: the registered block, and what stands before the first one
    block: str
    before: tuple[dict, ...] = ()

    def __init__(self, config: StackConfig, key: EmberTensor | None = None):
        super().__init__(self.write_out(config), key=key)

    @classmethod
    def write_out(cls, c: StackConfig) -> ModelConfig:
        """The plain ModelConfig that a StackConfig stands for."""
        if c.options.keys() & {"d_input", "dropout"}:
            raise ConfigError(f"{cls.__name__}: options repeat a field of their own: {sorted(c.options)}")
        block = blocks.get(cls.block)
        entry = {"block": cls.block, "repeat": c.n_layer, "dropout": c.dropout, **c.options}
        norm = c.options.get("norm") or block.norm
        return ModelConfig([*cls.before, entry], c.vocab_size, norm, c.head or ("tied" if c.vocab_size else None), c.vocab_multiple,
                           c.dropout, c.options.get("norm_config", {}), c.outputs, c.pool, defaults={"d_input": c.d_input})


@models.register("transformer")
class Transformer(StackModel):
    """Blocks of self-attention and a gated MLP, pre-norm. Source: Vaswani et al. 2017; Touvron et al. 2023, LLaMA."""

    block = "transformer"


@models.register("lstm")
class LSTMModel(StackModel):
    """LSTMs with residuals and norms between them. Source: Hochreiter and Schmidhuber 1997."""

    block = "lstm"


@models.register("mamba")
class MambaModel(StackModel):
    """Selective state spaces. Source: Gu and Dao 2023, Mamba, section 3.4."""

    block = "mamba"


@models.register("hyena")
class HyenaModel(StackModel):
    """Hyena operators and MLPs, with every option of the layer; `hyena_dna` is HyenaDNA's choice of them. Source: Poli et al. 2023."""

    block = "hyena"


@models.register("fftconv")
class FFTConvModel(StackModel):
    """Long convolutions with explicit taps, and MLPs. Source: Fu et al. 2023."""

    block = "fftconv"


@models.register("moe")
class MoEModel(StackModel):
    """Self-attention and sparse mixtures of experts. Source: Jiang et al. 2024, Mixtral of Experts."""

    block = "moe"


@models.register("rwkv")
class RWKVModel(StackModel):
    """Time mixing and channel mixing, with a norm on the embedding. Source: Peng et al. 2023, RWKV."""

    block, before = "rwkv", ({"norm": "layer_norm"},)


@models.register("hybrid")
class HybridModel(StackModel):
    """Several mixers side by side in each block; `mixers` names them. Source: Zuo et al. 2025, Falcon-H1."""

    block = "hybrid"
