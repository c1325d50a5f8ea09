"""RWKV's time mixing, versions 4, 5 and 6: an attention whose past decays, read and written through a shift by one position.

Source: Peng et al. 2023, RWKV: Reinventing RNNs for the Transformer Era; Peng et al. 2024, Eagle and Finch (5 and 6).
"""

from __future__ import annotations

from ember_ml.errors import ConfigError
from ember_ml.nn import initializers
from ember_ml.nn.layers.channel_mixing.dense import Dense, DenseConfig
from ember_ml.nn.layers.channel_mixing.norm import GroupNorm, GroupNormConfig
from ember_ml.nn.layers.sequence_mixing.base import SequenceMixer, state_dtype
from ember_ml.nn.packing import resets
from ember_ml.ops import (
    arange, concat, exp, expand_dims, full, linear_attention, linspace, matmul, ones, permute_dims, random, reshape, sigmoid, silu, tanh, where, wkv,
    zeros,
)
from ember_ml.ops.shape import cut
from ember_ml.registry import Size, config, layers
from ember_ml.tensor import EmberTensor


def token_shift(x: EmberTensor, last: EmberTensor | None) -> EmberTensor:
    """x_{t-1} - x_t for x (B, L, D), where `last` (B, D), by default zero, stands before the first position; zero before a packed document."""
    before = zeros((x.shape[0], x.shape[2]), x.dtype, like=x) if last is None else last.astype(x.dtype)
    earlier, reset = concat([expand_dims(before, 1), cut(x, 0, x.shape[1] - 1, axis=1)], axis=1), resets()
    return (earlier if reset is None else where(expand_dims(reset, -1), 0.0, earlier)) - x


def initial_mix(width: int) -> EmberTensor:
    """Shares of the previous position, (width,): all of it for the first channel, nearly nothing for the last."""
    return 1.0 - arange(width).astype("float32") * (1.0 / width)


def initial_decay(width: int) -> EmberTensor:
    """Logs of the decay rates, (width,): from e^-6 a position, slow, to e^-1."""
    return linspace(0.0, 1.0, width) ** 0.7 * 5.0 - 6.0


class TimeMixing(SequenceMixer):
    """Base: shares `mix_*` of the previous position, projections of the mixtures, and the output.

    A derived class names its mixtures and gives `run`.
    """

    cannot_pack = None
    mixtures: tuple[str, ...] = ()
    projections: tuple[str, ...] = ()

    def __init__(self, config, key: EmberTensor | None = None):
        self.config = c = config
        self.inner = c.d_inner or c.d_input
        *keys, out_key, self._key = random.split(key if key is not None else random.next_key(), len(self.projections) + 2)
        for name in self.mixtures:
            setattr(self, f"mix_{name}", initial_mix(c.d_input))
        for name, k in zip(self.projections, keys):
            setattr(self, name, Dense(DenseConfig(c.d_input, self.inner, False), key=k))
        self.output = Dense(DenseConfig(self.inner, c.d_input, False), key=out_key)

    def run(self, x: EmberTensor, change: EmberTensor, memory) -> tuple:
        """(y before the output projection, next memory) from x and x_{t-1} - x_t."""
        raise NotImplementedError

    def forward(self, x: EmberTensor, state=None):
        """(B, L, d_input) to the same shape."""
        y, memory = self.run(x, token_shift(x, None if state is None else state["shift"]), None if state is None else state["memory"])
        after = None if state is None else {"shift": x[:, -1].astype(state["shift"].dtype), "memory": memory}
        return self.output(y), after

    def initial_state(self, batch: int, dtype="float32"):
        """Nothing before the first position; the memory is kept in float32 at least."""
        return {"shift": zeros((batch, self.config.d_input), dtype, like=self.output.weight),
                "memory": self.initial_memory(batch, state_dtype(dtype))}


@config
class RWKV4Config:
    """d_input: channels. d_inner: channels of the memory, None for d_input."""

    d_input: Size
    d_inner: Size | None = None


@layers.register("rwkv4")
class RWKV4(TimeMixing):
    """out_t = W_o (sigmoid(r_t) wkv(k, v)_t), where r, k, v project mixtures x_t + mix (x_{t-1} - x_t); `ops.wkv` has the formula.

    Args:
        config: see RWKV4Config. key: random key of the initial weights.

    Parameters: mix_k, mix_v, mix_r (d_input,); key, value, receptance, output as Dense without bias; decay (inner,), log of the rate a
    position; bonus (inner,), log of the present's weight. State: shift (B, d_input); memory: numerator, denominator and their log scale.

    Source: Peng et al. 2023, RWKV, section 3.1.
    """

    Config = RWKV4Config
    mixtures, projections = ("k", "v", "r"), ("key", "value", "receptance")

    def __init__(self, config: RWKV4Config, key: EmberTensor | None = None):
        super().__init__(config, key)
        self.decay, self.bonus = initial_decay(self.inner), initializers.normal(self._key, (self.inner,), 0.3)

    def run(self, x, change, memory):
        k, v = self.key(x + change * self.mix_k), self.value(x + change * self.mix_v)
        y, after = wkv(k, v, exp(self.decay), self.bonus, None if memory is None else (memory["top"], memory["bottom"], memory["scale"]),
                       reset=resets())
        return sigmoid(self.receptance(x + change * self.mix_r)) * y, dict(zip(("top", "bottom", "scale"), after))

    def initial_memory(self, batch: int, dtype):
        top, bottom = (zeros((batch, self.inner), dtype, like=self.decay) for _ in range(2))
        return {"top": top, "bottom": bottom, "scale": full((batch, self.inner), -1e30, dtype, like=self.decay)}


class MatrixMemory(TimeMixing):
    """Base of versions 5 and 6: a matrix for each head, S_t = Diag(w_t) S_{t-1} + k_t v_t^T, read as (S_{t-1} + Diag(u) k_t v_t^T)^T r_t."""

    projections = ("receptance", "key", "value", "gate")

    def __init__(self, config, key: EmberTensor | None = None):
        super().__init__(config, key)
        c = config
        if self.inner % c.head_dim:
            raise ConfigError(f"{type(self).__name__}: expected head_dim to divide the {self.inner} inner channels, received {c.head_dim}")
        self.heads = self.inner // c.head_dim
        self.bonus = ones((self.heads, c.head_dim)) * 0.5
        self.norm = GroupNorm(GroupNormConfig(self.inner, c.norm_eps, groups=self.heads))

    def attend(self, r, k, v, gate, decay, memory):
        """The memory's output, normed head by head and gated; r, k, v, gate (B, L, inner), decay (., ., heads, head_dim) in logs."""
        r, k, v = (reshape(t, (*t.shape[:2], self.heads, self.config.head_dim)) for t in (r, k, v))
        y, after = linear_attention(r, k, v, decay, initial=memory, exclusive=True, reset=resets())
        y = y + (r * k * self.bonus).sum(axis=-1, keepdims=True) * v
        return self.norm(reshape(y, gate.shape)) * silu(gate), after

    def initial_memory(self, batch: int, dtype):
        return zeros((batch, self.heads, self.config.head_dim, self.config.head_dim), dtype, like=self.bonus)


@config
class RWKV5Config:
    """d_input: channels. head_dim: channels of a head. d_inner: channels of the memory, None for d_input. norm_eps: of the norm by heads."""

    d_input: Size
    head_dim: Size = 64
    d_inner: Size | None = None
    norm_eps: float = 64e-5


@layers.register("rwkv5")
class RWKV5(MatrixMemory):
    """out_t = W_o (norm(y_t) silu(g_t)), y_t = (S_{t-1} + Diag(u) k_t v_t^T)^T r_t, S_t = Diag(w) S_{t-1} + k_t v_t^T for each head.

    r, k, v, g project mixtures x_t + mix (x_{t-1} - x_t); w = exp(-exp(decay)).

    Args:
        config: see RWKV5Config. key: random key of the initial weights.

    Parameters: mix_k, mix_v, mix_r, mix_g (d_input,); receptance, key, value, gate, output as Dense without bias; decay and bonus u
    (heads, head_dim); norm as GroupNorm. State: shift (B, d_input) and memory S (B, heads, head_dim, head_dim).

    Source: Peng et al. 2024, Eagle and Finch, section 4.1. The original divides y by 8 before its norm with eps 1e-5; the same is a
    norm_eps of 64e-5 without division.
    """

    Config = RWKV5Config
    mixtures = ("k", "v", "r", "g")

    def __init__(self, config: RWKV5Config, key: EmberTensor | None = None):
        super().__init__(config, key)
        self.decay = reshape(initial_decay(self.inner), self.bonus.shape)

    def run(self, x, change, memory):
        r, k, v = (p(x + change * mix) for p, mix in ((self.receptance, self.mix_r), (self.key, self.mix_k), (self.value, self.mix_v)))
        decay = -exp(reshape(self.decay, (1, 1, *self.decay.shape)))
        return self.attend(r, k, v, self.gate(x + change * self.mix_g), decay, memory)


@config
class RWKV6Config(RWKV5Config):
    """mix_rank, decay_rank: widths of the low-rank maps to the mixtures and to the decay."""

    mix_rank: Size = 32
    decay_rank: Size = 64


@layers.register("rwkv6")
class RWKV6(MatrixMemory):
    """As RWKV5, with mixtures and decays that depend on the token:

        m = tanh(W_down (x_t + mix_x d_t)) with d_t = x_{t-1} - x_t;  the mixture of p is x_t + d_t (mix_p + m_p U_p),  p = w, k, v, r, g
        w_t = exp(-exp(decay + W_2 tanh(W_1 x_w)))

    Args:
        config: see RWKV6Config. key: random key of the initial weights.

    Parameters: those of RWKV5; mix_x, mix_w; mix_down as Dense to 5 mix_rank, mix_up (5, mix_rank, d_input); decay (inner,), decay_down,
    decay_up as Dense. State as RWKV5.

    Source: Peng et al. 2024, Eagle and Finch, section 4.2.
    """

    Config = RWKV6Config
    mixtures = ("x", "w", "k", "v", "r", "g")

    def __init__(self, config: RWKV6Config, key: EmberTensor | None = None):
        super().__init__(config, key)
        c, keys = config, random.split(self._key, 4)
        self.mix_down = Dense(DenseConfig(c.d_input, 5 * c.mix_rank, False), key=keys[0])
        self.mix_up = initializers.uniform(keys[1], (5, c.mix_rank, c.d_input), 0.01)
        self.decay = initial_decay(self.inner)
        self.decay_down = Dense(DenseConfig(c.d_input, c.decay_rank, False), key=keys[2])
        self.decay_up = Dense(DenseConfig(c.decay_rank, self.inner, False), key=keys[3])

    def run(self, x, change, memory):
        batch, length, width = x.shape
        low = reshape(tanh(self.mix_down(x + change * self.mix_x)), (batch * length, 5, self.config.mix_rank))
        shares = reshape(matmul(permute_dims(low, (1, 0, 2)), self.mix_up), (5, batch, length, width))
        w, k, v, r, g = (x + change * (mix + shares[i]) for i, mix in
                         enumerate((self.mix_w, self.mix_k, self.mix_v, self.mix_r, self.mix_g)))
        decay = -exp(self.decay + self.decay_up(tanh(self.decay_down(w))))
        decay = reshape(decay, (batch, length, self.heads, self.config.head_dim))
        return self.attend(self.receptance(r), self.key(k), self.value(v), self.gate(g), decay, memory)
