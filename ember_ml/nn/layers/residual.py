"""How a block joins a layer's output y with its input x: hyena-dna's kinds, with their options."""

from __future__ import annotations

from ember_ml.nn import initializers
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


@config
class ConstantResidualConfig(ResidualConfig):
    """alpha, beta: constant factors of x and of y."""

    alpha: float = 1.0
    beta: float = 1.0


@config
class AffineResidualConfig(ConstantResidualConfig):
    """scalar: one factor for all channels, else one each. gamma: they start at beta depth^-gamma."""

    scalar: bool = False
    gamma: float = 0.5


@config
class HighwayResidualConfig(ResidualConfig):
    """elementwise: a factor for each channel of y in place of a map. scaling_correction: x counts sqrt(3) times (1.732)."""

    elementwise: bool = False
    scaling_correction: bool = False


@config
class DecayResidualConfig(ResidualConfig):
    """power: y counts depth^-power. l2: x and y keep the variance, not the sum of their factors."""

    power: float = 0.5
    l2: bool = True


class _Residual(Module):
    """Base: keeps the config."""

    Config = ResidualConfig

    def __init__(self, config: ResidualConfig, key: EmberTensor | None = None):
        self.config = config


@layers.register("residual")
class Residual(_Residual):
    """alpha x + beta y, with both 1 at first. Source: He et al. 2016, Deep Residual Learning; hyena-dna's kind R."""

    Config = ConstantResidualConfig

    def forward(self, x: EmberTensor, y: EmberTensor) -> EmberTensor:
        """Both (..., d_input)."""
        c = self.config
        return (x if c.alpha == 1.0 else x * c.alpha) + (y if c.beta == 1.0 else y * c.beta)


@layers.register("feedforward_residual")
class Feedforward(_Residual):
    """y alone: no connection, so that a layer may have other channels out than in. Source: hyena-dna's kind F."""

    def forward(self, x: EmberTensor, y: EmberTensor) -> EmberTensor:
        """x (..., d_input), y (..., any); returns y."""
        return y


@layers.register("affine_residual")
class Affine(_Residual):
    """alpha x + a y with learned factors a, at first beta depth^-gamma. Parameters: affine (d_input,), or (1,) if scalar.

    Source: Touvron et al. 2021, Going Deeper with Image Transformers (LayerScale); hyena-dna's kind A.
    """

    Config = AffineResidualConfig

    def __init__(self, config: AffineResidualConfig, key: EmberTensor | None = None):
        super().__init__(config)
        self.affine = ones((1 if config.scalar else config.d_input,)) * (config.beta * config.depth ** -config.gamma)

    def forward(self, x: EmberTensor, y: EmberTensor) -> EmberTensor:
        """Both (..., d_input)."""
        return (x if self.config.alpha == 1.0 else x * self.config.alpha) + self.affine * y


@layers.register("highway_residual")
class Highway(_Residual):
    """s (1 - r) x + r z with z = Wy y, r = sigmoid(Wx x + z) and s = 1, or 1.732 with the scaling correction.

    Parameters: Wx, Wy as Dense; elementwise Wy (d_input,), which z = Wy * y.

    Source: Srivastava et al. 2015, Highway Networks, in hyena-dna's form, which gates Wy y and not y.
    """

    Config = HighwayResidualConfig

    def __init__(self, config: HighwayResidualConfig, key: EmberTensor | None = None):
        super().__init__(config)
        first, second = random.split(key if key is not None else random.next_key())
        self.Wx = Dense(DenseConfig(config.d_input), key=first)
        self.Wy = initializers.normal(second, (config.d_input,), 1.0) if config.elementwise else Dense(DenseConfig(config.d_input), key=second)

    def forward(self, x: EmberTensor, y: EmberTensor) -> EmberTensor:
        """Both (..., d_input)."""
        z = self.Wy * y if self.config.elementwise else self.Wy(y)
        r = sigmoid(self.Wx(x) + z)
        kept = (1.0 - r) * x
        return (kept * 1.732 if self.config.scaling_correction else kept) + r * z


@layers.register("decay_residual")
class Decay(_Residual):
    """sqrt(1 - b^2) x + b y with b = depth^-power, which keeps the variance; (1 - b) x + b y without l2.

    Source: hyena-dna's kind D.
    """

    Config = DecayResidualConfig

    def forward(self, x: EmberTensor, y: EmberTensor) -> EmberTensor:
        """Both (..., d_input)."""
        c = self.config
        b = c.depth ** -c.power
        return ((1.0 - b * b) ** 0.5 if c.l2 else 1.0 - b) * x + b * y
