"""xLSTM: language models of mLSTM and sLSTM blocks, and the large model of mLSTM blocks alone."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from ember_ml.errors import ConfigError
from ember_ml.nn.blocks.base import BlockConfig
from ember_ml.nn.layers.activations import ActivationName
from ember_ml.nn.models.base import Model
from ember_ml.nn.models.config import ModelConfig
from ember_ml.registry import Count, Rate, Size, config, models
from ember_ml.tensor import EmberTensor


@config
class XLSTMConfig:
    """d_input: channels. n_layer: blocks. slstm_at: which of them, from 0, are sLSTM blocks. vocab_size: tokens, None for channels.

    heads, expand, taps, block, bias: as in MLSTMConfig. slstm_heads, slstm_taps, slstm_cell: as in SLSTMConfig.
    ff_expand, ff_activation: of the gated MLP behind an sLSTM. multiple_of: what inner widths are rounded up to; ff_multiple_of: of that MLP, None for the same.
    final_norm: a norm after the last block. head: "tied" to the embedding or "dense". dropout: on embedding and block outputs.
    """

    d_input: Size
    n_layer: Count
    slstm_at: list[int] = dataclasses.field(default_factory=list)
    vocab_size: Size | None = None
    heads: Size = 4
    expand: float = 2.0
    taps: Size = 4
    block: Size = 4
    bias: bool = False
    slstm_heads: Size = 4
    slstm_taps: Size | None = 4
    slstm_cell: Literal["slstm", "lstm"] = "slstm"
    ff_expand: float = 1.3
    ff_activation: ActivationName = "gelu"
    multiple_of: Size = 64
    ff_multiple_of: Size | None = None
    final_norm: bool = True
    head: Literal["tied", "dense"] = "dense"
    dropout: Rate = 0.0


@models.register("xlstm")
class XLSTM(Model):
    """Pre-norm blocks x + mlstm(norm(x)); at `slstm_at` x + slstm(norm(x)), x + gated_mlp(norm(x)).

    Args:
        config: see XLSTMConfig. key: random key of the initial weights.

    Saved and loaded as the plain list of blocks that it is.

    Source: Beck et al. 2024, xLSTM: Extended Long Short-Term Memory, section 2.4.
    """

    Config = XLSTMConfig

    def __init__(self, config: XLSTMConfig, key: EmberTensor | None = None):
        super().__init__(xlstm_blocks(config), key=key)


def xlstm_blocks(c: XLSTMConfig) -> ModelConfig:
    """The plain ModelConfig that an XLSTMConfig stands for. Raises ConfigError for a place in slstm_at that is none."""
    if beyond := [i for i in c.slstm_at if not 0 <= i < c.n_layer]:
        raise ConfigError(f"xlstm: expected slstm_at to name blocks 0 to {c.n_layer - 1}, received {beyond}")
    mlstm = dict(heads=c.heads, expand=c.expand, taps=c.taps, block=c.block, bias=c.bias, multiple_of=c.multiple_of)
    slstm = dict(heads=c.slstm_heads, taps=c.slstm_taps, cell=c.slstm_cell)
    around = dict(d_input=c.d_input, norm="layer_norm", norm_config={"bias": False, "unit_offset": True}, dropout=c.dropout)
    feed_forward = BlockConfig(layer="gated_mlp", layer_config=dict(
        d_inner=rounded_up(c.ff_expand * c.d_input, c.ff_multiple_of or c.multiple_of), activation=c.ff_activation), **around)
    blocks = []
    for i in range(c.n_layer):
        if i in c.slstm_at:
            blocks += [BlockConfig(layer="slstm", layer_config=slstm, **around), feed_forward]
        else:
            blocks.append(BlockConfig(layer="mlstm", layer_config=mlstm, **around))
    return ModelConfig(blocks, c.vocab_size, "layer_norm" if c.final_norm else None, c.head if c.vocab_size else None, dropout=c.dropout,
                       norm_config=around["norm_config"] if c.final_norm else {})


def rounded_up(width: float, multiple_of: int) -> int:
    """The smallest multiple that is not below a width."""
    return math.ceil(width / multiple_of) * multiple_of


@config
class XLSTMLargeConfig:
    """vocab_size: tokens. d_input: channels. n_layer: blocks. heads, expand_k, expand_v, gate_cap: as in LargeMLSTMConfig.

    ff_expand: of the gated MLP, rounded up to a multiple of `multiple_of`. logit_cap: logits are logit_cap tanh(. / logit_cap).
    norm_eps: of all norms. final_norm: one after the last block.
    """

    vocab_size: Size
    d_input: Size
    n_layer: Count
    heads: Size = 8
    expand_k: float = 0.5
    expand_v: float = 1.0
    ff_expand: float = 2.6667
    multiple_of: Size = 64
    gate_cap: float = 15.0
    logit_cap: float | None = 30.0
    norm_eps: float = 1e-6
    final_norm: bool = True


@models.register("xlstm_large")
class XLSTMLarge(Model):
    """Pre-norm pairs x + mlstm_large(norm(x)), x + swiglu(norm(x)), a last norm, and a head of its own with capped logits.

    Args:
        config: see XLSTMLargeConfig. key: random key of the initial weights.

    Saved and loaded as the plain list of blocks that it is.

    Source: Beck et al. 2025, xLSTM 7B: A Recurrent LLM for Fast and Efficient Inference.
    """

    Config = XLSTMLargeConfig

    def __init__(self, config: XLSTMLargeConfig, key: EmberTensor | None = None):
        super().__init__(xlstm_large_blocks(config), key=key)


def xlstm_large_blocks(c: XLSTMLargeConfig) -> ModelConfig:
    """The plain ModelConfig that an XLSTMLargeConfig stands for."""
    around = dict(d_input=c.d_input, norm="rms_norm", norm_config={"eps": c.norm_eps})
    mixer = dict(heads=c.heads, expand_k=c.expand_k, expand_v=c.expand_v, gate_cap=c.gate_cap, norm_eps=c.norm_eps)
    pair = [BlockConfig(layer="mlstm_large", layer_config=mixer, **around),
            BlockConfig(layer="gated_mlp", layer_config={"d_inner": rounded_up(c.ff_expand * c.d_input, c.multiple_of)}, **around)]
    return ModelConfig(pair * c.n_layer, c.vocab_size, "rms_norm" if c.final_norm else None, "dense", logit_cap=c.logit_cap,
                       norm_config=around["norm_config"] if c.final_norm else {})
