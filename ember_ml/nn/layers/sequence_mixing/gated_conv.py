"""The gated convolution of StripedHyena and Evo 2: Hyena of order 2 with a filter that decodes in constant memory."""

from __future__ import annotations

import dataclasses

from ember_ml.nn.layers.channel_mixing.dense import Dense, DenseConfig
from ember_ml.nn.layers.sequence_mixing.base import SequenceMixer
from ember_ml.nn.layers.sequence_mixing.inner_filter import DIRECT, InnerFilterConfig, ModalFilterConfig, inner_filter
from ember_ml.nn.layers.sequence_mixing.short_conv import ShortConv, ShortConvConfig
from ember_ml.ops import random, split, swap_axes
from ember_ml.registry import Size, config, layers
from ember_ml.tensor import EmberTensor


@config
class GatedConvConfig:
    """d_input: channels. filter: the inner one, explicit taps or modes, as a config or a table with its `kind`.

    short_taps: of the convolution before the gates. short_bias, bias, out_bias: of it, of the projection to the gates, and of the output's.
    """

    d_input: Size
    filter: InnerFilterConfig = dataclasses.field(default_factory=ModalFilterConfig)
    short_taps: Size = 3
    short_bias: bool = True
    bias: bool = True
    out_bias: bool = True


@layers.register("gated_conv")
class GatedConv(SequenceMixer):
    """x_2, x_1, v = short_conv(in_proj(x));  y = out_proj(x_2 filter(x_1 v)).

    With explicit taps it is Evo 2's Hyena-SE (7 taps, no skip) and Hyena-MR (128 taps), with real modes its Hyena-LI, with complex modes
    StripedHyena's operator.

    Args:
        config: see GatedConvConfig. key: random key of the initial weights.

    Parameters: in_proj (3 d_input, d_input), rows x_2, x_1, v; out_proj; as Dense; short as ShortConv; filter as TapsFilter or ModalFilter.
    State: short, the short convolution's; filter, the filter's. Both have one size whatever the length.

    Source: Poli et al. 2023, StripedHyena; Ku et al. 2025, Systems and Algorithms for Convolutional Multi-Hybrid Language Models at Scale.
    """

    Config = GatedConvConfig
    only_looks_back = True

    def __init__(self, config: GatedConvConfig, key: EmberTensor | None = None):
        self.config = c = config
        keys = random.split(key if key is not None else random.next_key(), 4)
        self.in_proj = Dense(DenseConfig(c.d_input, 3 * c.d_input, c.bias), key=keys[0])
        self.short = ShortConv(ShortConvConfig(3 * c.d_input, c.short_taps, c.short_bias), key=keys[1])
        self.filter = inner_filter(c.filter, c.d_input, keys[2])
        self.out_proj = Dense(DenseConfig(c.d_input, c.d_input, c.out_bias), key=keys[3])

    @property
    def cannot_pack(self) -> str | None:
        """Few explicit taps can, because they are applied one by one."""
        taps = getattr(self.config.filter, "taps", None)
        if taps is not None and taps <= DIRECT:
            return None
        return f"its filter of {'modes' if taps is None else f'{taps} taps'} is applied to the row by one transform, which has no borders inside"

    def convolve(self, z: EmberTensor, state=None):
        """What lies between the projections: z (B, L, 3 d_input) to (B, L, d_input)."""
        z, short = self.short(z, None if state is None else state["short"], channels_last=False)
        after, before, v = split(swap_axes(z), 3, axis=1)
        y, inner = self.filter(v, None if state is None else state["filter"], before, after)
        return swap_axes(y), None if state is None else {"short": short, "filter": inner}

    def forward(self, x: EmberTensor, state=None):
        """(B, L, d_input) to the same shape."""
        y, state = self.convolve(self.in_proj(x), state)
        return self.out_proj(y), state

    def step(self, x: EmberTensor, state):
        """One position, (B, d_input)."""
        z, short = self.short.step(self.in_proj(x), state["short"])
        after, before, v = split(z, 3, axis=-1)
        y, inner = self.filter.step(before * v, state["filter"])
        return self.out_proj(after * y), {"short": short, "filter": inner}

    def initial_state(self, batch: int, dtype="float32"):
        """Nothing has come yet."""
        return {"short": self.short.initial_state(batch, dtype), "filter": self.filter.initial_state(batch, dtype)}
