"""RWKV-7's time mixing: a matrix memory that is corrected by a generalised delta rule."""

from __future__ import annotations

from ember_ml.errors import ConfigError
from ember_ml.nn.layers.channel_mixing.dense import Dense, DenseConfig
from ember_ml.nn.layers.channel_mixing.norm import GroupNorm, GroupNormConfig
from ember_ml.nn.layers.sequence_mixing.rwkv import TimeMixing, initial_decay
from ember_ml.nn.packing import resets
from ember_ml.ops import delta_rule, normalize, ones, random, reshape, sigmoid, tanh, zeros
from ember_ml.registry import Size, config, layers
from ember_ml.tensor import EmberTensor

#: decays are exp(-e^-1/2 sigmoid(w)): the strongest a position is e^-0.607 = 0.545
STRONGEST = -0.6065306597126334


@config
class RWKV7Config:
    """d_input: channels. head_dim: channels of a head. decay_rank, rate_rank, gate_rank: widths of the low-rank maps.

    norm_eps: of the norm by heads; None for 1e-5 head_dim, the original's.
    """

    d_input: Size
    head_dim: Size = 64
    decay_rank: Size = 64
    rate_rank: Size = 64
    gate_rank: Size = 128
    norm_eps: float | None = None

    #: the memory is as wide as the input
    d_inner = None


@layers.register("rwkv7")
class RWKV7(TimeMixing):
    """For each head, with r, k, v, w, a, g from mixtures x_t + mix (x_{t-1} - x_t):

        S_t = Diag(w_t) S_{t-1} - (a_t kappa_t) (S_{t-1}^T kappa_t)^T + k'_t v_t^T;   y_t = S_t^T r_t
        kappa = k xi / |k xi|,  k' = k (1 + (a - 1) alpha),  a = sigmoid(a_0 + A_2 A_1 x_a),  w = exp(-e^-1/2 sigmoid(w_0 + W_2 tanh(W_1 x_w)))
        out_t = W_o ((norm(y_t) + (r_t . (rho k'_t)) v_t) g_t),  g = G_2 sigmoid(G_1 x_g)

    This is the first layer's form; later layers of the original add a share of the first layer's values to theirs.

    Args:
        config: see RWKV7Config. key: random key of the initial weights.

    Parameters: mix_r, mix_w, mix_k, mix_v, mix_a, mix_g (d_input,); receptance, key, value, output as Dense without bias; decay w_0,
    rate a_0, removal xi, replacement alpha (d_input,), bonus rho (heads, head_dim); decay_down, decay_up, rate_down, rate_up, gate_down,
    gate_up as Dense without bias; norm as GroupNorm. State: shift (B, d_input) and memory S (B, heads, head_dim, head_dim).

    Source: Peng et al. 2025, RWKV-7 Goose, section 4.
    """

    Config = RWKV7Config
    mixtures, projections = ("r", "w", "k", "v", "a", "g"), ("receptance", "key", "value")

    def __init__(self, config: RWKV7Config, key: EmberTensor | None = None):
        super().__init__(config, key)
        c, d = config, config.d_input
        if d % c.head_dim:
            raise ConfigError(f"rwkv7: expected head_dim to divide d_input = {d}, received {c.head_dim}")
        self.heads = d // c.head_dim
        keys = iter(random.split(self._key, 6))
        for name, rank in (("decay", c.decay_rank), ("rate", c.rate_rank), ("gate", c.gate_rank)):
            setattr(self, f"{name}_down", Dense(DenseConfig(d, rank, False), key=next(keys)))
            setattr(self, f"{name}_up", Dense(DenseConfig(rank, d, False), key=next(keys)))
        self.decay, self.rate = initial_decay(d), zeros((d,))
        self.removal, self.replacement = ones((d,)) * 0.85, ones((d,))
        self.bonus = ones((self.heads, c.head_dim)) * 0.1
        self.norm = GroupNorm(GroupNormConfig(d, c.norm_eps or 1e-5 * c.head_dim, groups=self.heads))

    def run(self, x, change, memory):
        def heads(t):
            return reshape(t, (*t.shape[:2], self.heads, self.config.head_dim))

        r, k, v = (p(x + change * mix) for p, mix in ((self.receptance, self.mix_r), (self.key, self.mix_k), (self.value, self.mix_v)))
        decay = STRONGEST * sigmoid(self.decay + self.decay_up(tanh(self.decay_down(x + change * self.mix_w))))
        rate = sigmoid(self.rate + self.rate_up(self.rate_down(x + change * self.mix_a)))
        gate = self.gate_up(sigmoid(self.gate_down(x + change * self.mix_g)))
        removed = normalize(heads(k * self.removal))
        k = k * (1.0 + (rate - 1.0) * self.replacement)
        r, k, v = heads(r), heads(k), heads(v)
        y, after = delta_rule(r, k, v, -removed, removed * heads(rate), heads(decay), initial=memory, reset=resets())
        y = self.norm(reshape(y, x.shape)) + reshape((r * k * self.bonus).sum(axis=-1, keepdims=True) * v, x.shape)
        return y * gate, after

    def initial_memory(self, batch: int, dtype):
        return zeros((batch, self.heads, self.config.head_dim, self.config.head_dim), dtype, like=self.bonus)
