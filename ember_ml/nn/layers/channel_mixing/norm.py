"""Normalisation layers: over all channels of a position, or over groups of them."""

from __future__ import annotations

from ember_ml.errors import ConfigError, ShapeError
from ember_ml.nn.layers.channel_mixing.base import ChannelMixer
from ember_ml.ops import layer_norm, mean, ones, reshape, rms_norm, sqrt, square, where, zeros
from ember_ml.registry import Size, config, layers
from ember_ml.tensor import EmberTensor


@config
class NormConfig:
    """d_input: channels. eps: added under the root. unit_offset: the factor is 1 + weight, so that weight starts at 0."""

    d_input: Size
    eps: float = 1e-5
    unit_offset: bool = False


@config
class LayerNormConfig(NormConfig):
    """bias: add one."""

    bias: bool = True


@config
class RMSNormConfig(NormConfig):
    """eps_outside: eps is added to the root and not under it. groups: of neighbouring channels, each with its own mean.

    bias: add one.
    """

    eps_outside: bool = False
    groups: Size = 1
    bias: bool = False


@config
class GroupNormConfig(LayerNormConfig):
    """groups: of neighbouring channels; their number must divide d_input."""

    groups: Size = 1


class _Norm(ChannelMixer):
    """Base: a factor for every channel, and a bias where the config has one."""

    def __init__(self, config: NormConfig, key: EmberTensor | None = None):
        self.config = config
        self.weight = (zeros if config.unit_offset else ones)((config.d_input,))
        self.bias = zeros((config.d_input,)) if getattr(config, "bias", False) else None

    def check(self, x: EmberTensor):
        """Raises for another number of channels, of which a single one would be spread over all."""
        if not isinstance(x, EmberTensor):
            raise TypeError(f"{type(self).__name__}: expected an EmberTensor, got {type(x).__name__}; make one with em.tensor(...)")
        if x.shape[-1:] != (self.config.d_input,):
            raise ShapeError(f"{type(self).__name__}: expected x of shape (..., d_input) = (..., {self.config.d_input}), got {x.shape}")

    def factor(self) -> EmberTensor:
        """What the normalised channels are multiplied by, (d_input,)."""
        return 1.0 + self.weight if self.config.unit_offset else self.weight


def _check_groups(name: str, c):
    if c.d_input % c.groups:
        raise ConfigError(f"{name}: expected groups to divide d_input = {c.d_input}, received {c.groups}")


def _grouped(x: EmberTensor, groups: int) -> EmberTensor:
    return reshape(x, (*x.shape[:-1], groups, x.shape[-1] // groups))


@layers.register("layer_norm")
class LayerNorm(_Norm):
    """(x - mean) / sqrt(var + eps) * weight + bias over the channels. Source: Ba, Kiros and Hinton 2016.

    Parameters: weight, bias (d_input,).
    """

    Config = LayerNormConfig

    def forward(self, x: EmberTensor) -> EmberTensor:
        """(..., d_input), same shape and dtype."""
        self.check(x)
        return layer_norm(x, self.factor(), self.bias, eps=self.config.eps)


@layers.register("rms_norm")
class RMSNorm(_Norm):
    """x / sqrt(mean(x^2) + eps) * weight over the channels; with eps_outside x / (sqrt(mean(x^2)) + eps) * weight.

    Parameters: weight (d_input,), and bias with `bias`.

    Source: Zhang and Sennrich 2019; eps_outside is StripedHyena's, unit_offset Gemma's, groups are Mamba-2's.
    """

    Config = RMSNormConfig

    def __init__(self, config: RMSNormConfig, key: EmberTensor | None = None):
        _check_groups("rms_norm", config)
        super().__init__(config, key)

    def forward(self, x: EmberTensor) -> EmberTensor:
        """(..., d_input), same shape and dtype."""
        self.check(x)
        y = self._scaled(x)
        return y if self.bias is None else y + self.bias

    def _scaled(self, x: EmberTensor) -> EmberTensor:
        c = self.config
        if c.groups == 1 and not c.eps_outside:
            return rms_norm(x, self.factor(), eps=c.eps)
        parts = _grouped(x, c.groups)
        y = _outside(parts, c.eps) if c.eps_outside else rms_norm(parts, ones(parts.shape[-1:], x.dtype, like=x), eps=c.eps)
        return reshape(y, x.shape) * self.factor()


def _outside(x: EmberTensor, eps: float) -> EmberTensor:
    power = mean(square(x), axis=-1, keepdims=True)
    some = power > 0.0                                     # the root has no slope at 0, where the output is 0 anyway
    return where(some, x / (sqrt(where(some, power, 1.0)) + eps), 0.0)


@layers.register("group_norm")
class GroupNorm(_Norm):
    """LayerNorm over each group of channels of a position by itself, with a factor and a bias for every channel.

    Parameters: weight, bias (d_input,).

    Source: Wu and He 2018, Group Normalization, section 3; here the positions stay apart, as in recurrent mixers.
    """

    Config = GroupNormConfig

    def __init__(self, config: GroupNormConfig, key: EmberTensor | None = None):
        _check_groups("group_norm", config)
        super().__init__(config, key)

    def forward(self, x: EmberTensor) -> EmberTensor:
        """(..., d_input), same shape and dtype."""
        self.check(x)
        c = self.config
        y = reshape(layer_norm(_grouped(x, c.groups), None, None, eps=c.eps), x.shape) * self.factor()
        return y if self.bias is None else y + self.bias
