"""HyenaDNA: a language model of Hyena and MLP blocks."""

from __future__ import annotations

import dataclasses

from ember_ml.nn.blocks.base import BlockConfig
from ember_ml.nn.models.base import Model
from ember_ml.nn.models.config import ModelConfig
from ember_ml.registry import Count, Rate, Size, config, models
from ember_ml.tensor import EmberTensor


@config
class HyenaDNAConfig:
    """vocab_size: tokens. d_input: channels. n_layer: pairs of Hyena and MLP blocks. l_max: longest sequence.

    d_inner: of the MLP, None for 4 d_input. order, short_taps, filter: as in HyenaConfig. dropout: on embedding and
    block outputs. vocab_multiple: rows of the embedding are rounded up to it.
    """

    vocab_size: Size
    d_input: Size
    n_layer: Count
    l_max: Size
    d_inner: Size | None = None
    order: Count = 2
    short_taps: Size = 3
    filter: dict = dataclasses.field(default_factory=dict)
    dropout: Rate = 0.0
    vocab_multiple: Size = 1


@models.register("hyena_dna")
class HyenaDNA(Model):
    """Pre-norm pairs x + hyena(norm(x)), x + mlp(norm(x)), a last norm, and a head tied to the embedding.

    Args:
        config: see HyenaDNAConfig. key: random key of the initial weights.

    Saved and loaded as the plain list of blocks that it is.

    Source: Nguyen et al. 2023, HyenaDNA: Long-Range Genomic Sequence Modeling at Single Nucleotide Resolution.
    """

    Config = HyenaDNAConfig

    def __init__(self, config: HyenaDNAConfig, key: EmberTensor | None = None):
        super().__init__(block_list(config), key=key)


def block_list(c: HyenaDNAConfig) -> ModelConfig:
    """The plain ModelConfig that a HyenaDNAConfig stands for."""
    mixer = dict(l_max=c.l_max, order=c.order, short_taps=c.short_taps, filter=c.filter)
    blocks = []
    for _ in range(c.n_layer):
        blocks.append(BlockConfig(d_input=c.d_input, layer="hyena", layer_config=mixer, norm="layer_norm", dropout=c.dropout))
        blocks.append(BlockConfig(d_input=c.d_input, layer="mlp", layer_config={"d_inner": c.d_inner}, norm="layer_norm",
                                  dropout=c.dropout))
    return ModelConfig(blocks, c.vocab_size, "layer_norm", "tied", c.vocab_multiple, c.dropout)
