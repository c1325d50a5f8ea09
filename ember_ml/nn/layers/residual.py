"""How a block joins a layer's output y with its input x."""

from __future__ import annotations

from ember_ml.nn.layers.channel_mixing.dense import Dense, DenseConfig
from ember_ml.nn.module import Module
from ember_ml.ops import ones, random, sigmoid
from ember_ml.registry import Size, config, layers
from ember_ml.tensor import EmberTensor


@config
class ResidualConfig:
    """d_input: channels. depth: number of the layer in its model, from 1, for the kinds that weaken with depth."""

    d_input: Size
    depth: Size = 1


@layers.register("residual")
class Residual(Module):
    """x + y."""

    Config = ResidualConfig

    def __init__(self, config: ResidualConfig, key: EmberTensor | None = None):
        self.config = config

    def forward(self, x: EmberTensor, y: EmberTensor) -> EmberTensor:
        """Both (..., d_input)."""
        return x + y


@layers.register("affine_residual")
class Affine(Module):
    """x + a y with a learned factor per channel, at first depth^-1/2. Parameters: affine (d_input,)."""

    Config = ResidualConfig

    def __init__(self, config: ResidualConfig, key: EmberTensor | None = None):
        self.config = config
        self.affine = ones((config.d_input,)) * config.depth ** -0.5

    def forward(self, x: EmberTensor, y: EmberTensor) -> EmberTensor:
        """Both (..., d_input)."""
        return x + self.affine * y


@layers.register("highway_residual")
class Highway(Module):
    """(1 - r) x + r z with z = Wy y and r = sigmoid(Wx x + z). Parameters: Wx, Wy as Dense.

    Source: Srivastava et al. 2015, Highway Networks, in hyena-dna's form, which gates Wy y and not y.
    """

    Config = ResidualConfig

    def __init__(self, config: ResidualConfig, key: EmberTensor | None = None):
        self.config = config
        first, second = random.split(key if key is not None else random.next_key())
        self.Wx = Dense(DenseConfig(config.d_input), key=first)
        self.Wy = Dense(DenseConfig(config.d_input), key=second)

    def forward(self, x: EmberTensor, y: EmberTensor) -> EmberTensor:
        """Both (..., d_input)."""
        z = self.Wy(y)
        r = sigmoid(self.Wx(x) + z)
        return (1.0 - r) * x + r * z


@layers.register("decay_residual")
class Decay(Module):
    """sqrt(1 - b^2) x + b y with b = depth^-1/2, which keeps the variance."""

    Config = ResidualConfig

    def __init__(self, config: ResidualConfig, key: EmberTensor | None = None):
        self.config = config

    def forward(self, x: EmberTensor, y: EmberTensor) -> EmberTensor:
        """Both (..., d_input)."""
        b = self.config.depth ** -0.5
        return (1.0 - b * b) ** 0.5 * x + b * y
