"""The gated perceptron."""

from __future__ import annotations

from ember_ml.nn.layers.activations import ActivationName
from ember_ml.nn.layers.channel_mixing.base import ChannelMixer
from ember_ml.nn.layers.channel_mixing.dense import Dense, DenseConfig
from ember_ml.nn.layers.channel_mixing.gated_linear import GatedLinear, GatedLinearConfig
from ember_ml.ops import random
from ember_ml.registry import Size, config, layers
from ember_ml.tensor import EmberTensor


@config
class GatedMLPConfig:
    """d_input: channels. d_inner: hidden channels, None for int(8 d_input / 3) rounded up to a multiple of `multiple_of`.

    activation: of the gate, "silu" for SwiGLU, "gelu" for GeGLU. bias: of the three maps.
    """

    d_input: Size
    d_inner: Size | None = None
    activation: ActivationName = "silu"
    bias: bool = False
    multiple_of: Size = 1


@layers.register("gated_mlp")
class GatedMLP(ChannelMixer):
    """y = down(act(gate(x)) up(x)).

    Args:
        config: see GatedMLPConfig. key: random key of the initial weights.

    Parameters: glu as GatedLinear, with gate and up (d_inner, d_input); down (d_input, d_inner) as Dense.

    Source: Shazeer 2020, GLU Variants Improve Transformer, eq. 6.
    """

    Config = GatedMLPConfig

    def __init__(self, config: GatedMLPConfig, key: EmberTensor | None = None):
        self.config = c = config
        first, second = random.split(key if key is not None else random.next_key())
        inner = c.d_inner or -(-(8 * c.d_input // 3) // c.multiple_of) * c.multiple_of
        self.glu = GatedLinear(GatedLinearConfig(c.d_input, inner, c.activation, c.bias), key=first)
        self.down = Dense(DenseConfig(inner, c.d_input, c.bias), key=second)

    def forward(self, x: EmberTensor) -> EmberTensor:
        """(..., d_input), same shape."""
        return self.down(self.glu(x))
