"""StripedHyena and Evo 2: stripes of gated convolutions and attention."""

from __future__ import annotations

from typing import Any, Literal

from ember_ml.nn.blocks.base import BlockConfig
from ember_ml.nn.layers.activations import ActivationName
from ember_ml.nn.models.base import Model
from ember_ml.nn.models.config import ModelConfig
from ember_ml.registry import Size, config, models
from ember_ml.tensor import EmberTensor

Mixer = Literal["hyena_se", "hyena_mr", "hyena_li", "hyena_modal", "attention"]


@config
class StripedHyenaConfig:
    """A stack of mixers, each followed by a gated MLP.

    Args:
        vocab_size: tokens. d_input: channels.
        mixers: in order: Evo 2's short, medium and long operator, "hyena_se", "hyena_mr", "hyena_li"; StripedHyena's "hyena_modal"
            with complex modes; "attention".
        heads: of the attention. kv_heads: its key and value heads, None for as many.
        modes: of the long filters. filters: different short and medium filters, None for one a channel. se_taps, mr_taps: their lengths.
        short_bias, hyena_bias, hyena_out_bias, attention_bias, attention_out_bias: which maps have a bias: the short convolution, the
            projections in and out of the gated convolutions and of the attention.
        d_inner: of the MLPs, None for 8/3 d_input rounded up to a multiple of 64. activation: of the first block's MLP;
            later_activation: of the others', None for the same (Evo 2 has "identity" there).
        rope_base, rope_scale: of the attention's rotary positions. eps: of the norms, added to the root.
        head: "tied" to the embedding or "dense".
    """

    vocab_size: Size
    d_input: Size
    mixers: list[Mixer]
    heads: Size = 1
    kv_heads: Size | None = None
    modes: Size = 16
    filters: Size | None = None
    se_taps: Size = 7
    mr_taps: Size = 128
    short_bias: bool = False
    hyena_bias: bool = False
    hyena_out_bias: bool = True
    attention_bias: bool = False
    attention_out_bias: bool = True
    d_inner: Size | None = None
    activation: ActivationName = "gelu"
    later_activation: ActivationName | None = None
    rope_base: float = 10000.0
    rope_scale: float = 1.0
    eps: float = 1e-6
    head: Literal["tied", "dense"] = "tied"


@models.register("striped_hyena")
class StripedHyena(Model):
    """Pre-norm pairs x + mixer(norm(x)), x + gated_mlp(norm(x)), a last norm and a head.

    Args:
        config: see StripedHyenaConfig. key: random key of the initial weights.

    Saved and loaded as the plain list of blocks that it is.

    Source: Poli et al. 2023, StripedHyena; Ku et al. 2025, Systems and Algorithms for Convolutional Multi-Hybrid Language Models at Scale.
    """

    Config = StripedHyenaConfig

    def __init__(self, config: StripedHyenaConfig, key: EmberTensor | None = None):
        super().__init__(striped_blocks(config), key=key)


def _filter(c: StripedHyenaConfig, mixer: Mixer) -> dict[str, Any]:
    if mixer == "hyena_se":
        return {"kind": "taps", "taps": c.se_taps, "filters": c.filters, "order": "corr", "skip": False}
    if mixer == "hyena_mr":
        return {"kind": "taps", "taps": c.mr_taps, "filters": c.filters}
    return {"kind": "modal", "modes": c.modes, "complex": mixer == "hyena_modal"}


def striped_blocks(c: StripedHyenaConfig) -> ModelConfig:
    """The plain ModelConfig that a StripedHyenaConfig stands for."""
    around = dict(d_input=c.d_input, norm="rms_norm", norm_config={"eps": c.eps, "eps_outside": True})
    attention = dict(heads=c.heads, kv_heads=c.kv_heads, bias=c.attention_bias, out_bias=c.attention_out_bias,
                     rope={"base": c.rope_base, "scale": c.rope_scale})
    blocks = []
    for i, mixer in enumerate(c.mixers):
        if mixer == "attention":
            blocks.append(BlockConfig(layer="self_attention", layer_config=attention, **around))
        else:
            gated = dict(filter=_filter(c, mixer), short_bias=c.short_bias, bias=c.hyena_bias, out_bias=c.hyena_out_bias)
            blocks.append(BlockConfig(layer="gated_conv", layer_config=gated, **around))
        activation = c.activation if i == 0 or c.later_activation is None else c.later_activation
        mlp = dict(d_inner=c.d_inner, activation=activation, multiple_of=64)
        blocks.append(BlockConfig(layer="gated_mlp", layer_config=mlp, **around))
    return ModelConfig(blocks, c.vocab_size, "rms_norm", c.head, norm_config=around["norm_config"])
