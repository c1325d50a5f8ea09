"""Mixture of experts as channel mixers: dense (all experts weighed) and sparse (k of them per token)."""

from __future__ import annotations

from ember_ml.nn.layers.activations import ActivationName
from ember_ml.nn.layers.channel_mixing.base import ChannelMixer
from ember_ml.nn.moe.experts import MLPExperts, MLPExpertsConfig
from ember_ml.nn.moe.routing import SoftmaxRouter, SoftmaxRouterConfig
from ember_ml.ops import arange, expand_dims, moe_combine, permute_dims, random, reshape
from ember_ml.registry import Size, config, layers
from ember_ml.tensor import EmberTensor


@config
class MixtureOfExpertsConfig:
    """d_input: channels. num_experts: E. d_inner: hidden channels of each expert. activation: of the experts."""

    d_input: Size
    num_experts: Size
    d_inner: Size
    activation: ActivationName = "gelu_tanh"


@config
class SparseMoEConfig(MixtureOfExpertsConfig):
    """k: experts per token. balance_rate: step of the router's selection bias in training, 0 for no balancing."""

    k: Size = 2
    balance_rate: float = 1e-3


class _Experts(ChannelMixer):
    """Router and experts from one config; `k` of the router."""

    def _build(self, config, k: int, balance_rate: float, key: EmberTensor | None):
        self.config = c = config
        router_key, expert_key = random.split(key if key is not None else random.next_key())
        self.router = SoftmaxRouter(SoftmaxRouterConfig(c.d_input, c.num_experts, k, balance_rate), key=router_key)
        self.experts = MLPExperts(MLPExpertsConfig(c.d_input, c.num_experts, c.d_inner, c.activation), key=expert_key)

    def _tokens(self, x: EmberTensor) -> EmberTensor:
        return reshape(x, (x.size // x.shape[-1], x.shape[-1]))


@layers.register("mixture_of_experts")
class MixtureOfExperts(_Experts):
    """y = sum_e p_e(x) f_e(x) over all experts, p = softmax(W x).

    Args:
        config: see MixtureOfExpertsConfig. key: random key of the initial weights.

    Parameters: router as SoftmaxRouter (its bias, which only chooses, has no effect here), experts as MLPExperts.

    Source: Jacobs et al. 1991, Adaptive Mixtures of Local Experts.
    """

    Config = MixtureOfExpertsConfig

    def __init__(self, config: MixtureOfExpertsConfig, key: EmberTensor | None = None):
        self._build(config, config.num_experts, 0.0, key)

    def forward(self, x: EmberTensor) -> EmberTensor:
        """(..., d_input), same shape and dtype."""
        tokens = self._tokens(x)
        p, _ = self.router.probabilities(tokens)
        y = permute_dims(self.experts(tokens), (1, 2, 0)) * expand_dims(p, 1)
        return reshape(y.sum(axis=-1), x.shape).astype(x.dtype)


@layers.register("moe")
class SparseMoE(_Experts):
    """y = sum_{e in S(x)} w_e(x) f_e(x): the router chooses k experts S and their weights w (formulas: SoftmaxRouter).

    For now every expert works on every token and the chosen rows are picked out: shapes are static on every engine and
    inside a compiled step, at E / k times the work of grouped experts. The result does not depend on how it is
    computed, so grouping the rows by expert will change the time and nothing else.

    Args:
        config: see SparseMoEConfig. key: random key of the initial weights.

    Parameters: router as SoftmaxRouter, experts as MLPExperts. Buffers: router.bias.

    Source: Shazeer et al. 2017, Outrageously Large Neural Networks; DeepSeek-AI 2024, DeepSeek-V3 (balancing).
    """

    Config = SparseMoEConfig

    def __init__(self, config: SparseMoEConfig, key: EmberTensor | None = None):
        self._build(config, config.k, config.balance_rate, key)

    def forward(self, x: EmberTensor) -> EmberTensor:
        """(..., d_input), same shape and dtype."""
        tokens = self._tokens(x)
        count = tokens.shape[0]
        ids, weights = self.router(tokens)
        rows = reshape(self.experts(tokens), (self.config.num_experts * count, x.shape[-1]))
        where = ids * count + expand_dims(arange(count, like=ids), 1)        # row of (expert, token)
        return reshape(moe_combine(rows, where, weights), x.shape).astype(x.dtype)
