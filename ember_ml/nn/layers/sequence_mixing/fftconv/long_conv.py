"""The explicit long convolution: one learned tap per position."""

from __future__ import annotations

from ember_ml.errors import ShapeError, UnsupportedOp
from ember_ml.nn import initializers
from ember_ml.nn.layers.activations import ACTIVATIONS, ActivationName
from ember_ml.nn.layers.channel_mixing.dense import Dense, DenseConfig
from ember_ml.nn.layers.sequence_mixing.base import SequenceMixer
from ember_ml.nn.layers.sequence_mixing.frozen_filters import FrozenFilters
from ember_ml.nn.layers.sequence_mixing.online_conv import OnlineFilter, convolve_chunk, convolve_step, initial_cache
from ember_ml.ops import abs, concat, fftconv, pad, prepare_filter, random, relu, sigmoid, sign, split, swap_axes, zeros
from ember_ml.ops.shape import cut
from ember_ml.registry import Size, config, layers
from ember_ml.tensor import EmberTensor


@config
class LongConvConfig:
    """d_input: channels. l_max: taps, and the longest sequence. copies: filters per channel.

    squash: taps lose this much of their size, so that small ones vanish. smoothing: width of a moving average over the
    taps before that, None for none. activation: after the convolution. bidirectional: also filters of the future; such a
    layer has no step.
    """

    d_input: Size
    l_max: Size
    copies: Size = 1
    squash: float = 0.1
    smoothing: int | None = None
    activation: ActivationName = "gelu"
    bidirectional: bool = False


@layers.register("long_conv")
class LongConv(SequenceMixer):
    """y = a sigmoid(b) with [a, b] = out_proj(act(k * x + D x)), k = relu(|w| - squash) sign(w).

    Causal, or bidirectional with z_t = sum_j k[j] x[t - j] + sum_j k'[j] x[t + 1 + j].

    Args:
        config: see LongConvConfig. key: random key of the initial weights.

    Parameters: kernel (copies d_input, l_max), future of the same shape if bidirectional, D (copies d_input,), out_proj (2 d_input, copies
    d_input) as Dense. State: long, the inputs so far and what they add to outputs to come, in blocks (`online_conv`, docs/decoding.md): at most
    2 l_max + 64 numbers a channel; at, positions so far; filters.

    Source: Fu et al. 2023, Simple Hardware-Efficient Long Convolutions for Sequence Modeling.
    """

    Config = LongConvConfig
    cannot_pack = "its filters are as long as the row and applied by one transform, which has no borders inside"

    @property
    def only_looks_back(self) -> bool:
        """Not if bidirectional."""
        return not self.config.bidirectional

    def __init__(self, config: LongConvConfig, key: EmberTensor | None = None):
        self.config = c = config
        keys = random.split(key if key is not None else random.next_key(), 4)
        wide = c.copies * c.d_input
        # Taps below `squash` are zero and get no gradient: the start must be above it for most of them.
        self.kernel = initializers.normal(keys[0], (wide, c.l_max), max(0.002, 2.0 * c.squash))
        if c.bidirectional:
            self.future = initializers.normal(keys[3], (wide, c.l_max), max(0.002, 2.0 * c.squash))
        self.D = random.normal(keys[1], (wide,))
        self.out_proj = Dense(DenseConfig(wide, 2 * c.d_input), key=keys[2])
        self._prepared, self._prepared_state, self._taps = FrozenFilters(), FrozenFilters(), FrozenFilters()

    def filters(self, weight: EmberTensor | None = None) -> EmberTensor:
        """The taps that a weight (default: kernel) stands for, (copies d_input, l_max)."""
        w, width = self.kernel if weight is None else weight, self.config.smoothing
        if width is not None:
            wide, length = pad(w, ((0, 0), (width // 2, width // 2))), w.shape[1]
            parts = [cut(wide, i, i + length, axis=1) for i in range(width)]
            w = sum(parts[1:], parts[0]) * (1.0 / width)
        return relu(abs(w) - self.config.squash) * sign(w)

    def _both_filters(self) -> tuple[EmberTensor, EmberTensor | None]:
        """The filters of the past and of the future; the latter has no tap on the present."""
        future = pad(self.filters(self.future), ((0, 0), (1, 0))) if self.config.bidirectional else None
        return self.filters(), future

    def forward(self, x: EmberTensor, state=None):
        """(B, L, d_input) to the same shape; L at most l_max without a state."""
        c, length = self.config, x.shape[1]
        u, k, after = swap_axes(x), None, None
        if state is None:
            if length > c.l_max:
                raise ShapeError(f"long_conv: expected a length of at most l_max = {c.l_max}, got {length}; build the layer "
                                 "with a larger l_max, or continue from initial_state")
            frozen = self._prepared.get([self.kernel, self.future] if c.bidirectional else [self.kernel], c.l_max,
                                      lambda: [prepare_filter(*self._both_filters())])
            k, future = self._both_filters() if frozen is None else (frozen[0], None)
            y = fftconv(self._copied(u), k, self.D, k_reverse=future)
        else:
            y, cache = convolve_chunk(state["long"], state["at"], self._copied(u), self.D, self._decoding(state))
            after = {"long": cache, "filters": state["filters"], "at": state["at"] + length}
        return self._output(swap_axes(y)), after

    def step(self, x: EmberTensor, state):
        """One position, (B, d_input): O(log^2 l_max) multiply-adds a channel, averaged over l_max positions."""
        y, cache = convolve_step(state["long"], state["at"], self._copied(x), self._decoding(state))
        after = {"long": cache, "filters": state["filters"], "at": state["at"] + 1}
        return self._output(y + self.D * self._copied(x)), after

    def _decoding(self, state) -> OnlineFilter:
        frozen = self._prepared_state.get([state["filters"]], self.config.l_max, lambda: [OnlineFilter(state["filters"], prepare=True)])
        return OnlineFilter(state["filters"], prepare=False) if frozen is None else frozen[0]

    def initial_state(self, batch: int, dtype="float32"):
        """No inputs yet, and the filters, which later changes of the parameters do not touch. States of the same parameters share them.

        Raises UnsupportedOp if bidirectional.
        """
        if self.config.bidirectional:
            raise UnsupportedOp("long_conv: a bidirectional layer reads the future, it cannot run step by step; call forward "
                                "on the whole sequence")
        frozen = self._taps.get([self.kernel], self.config.l_max, lambda: [self.filters()])
        filters = self.filters() if frozen is None else frozen[0]
        wide = self.config.copies * self.config.d_input
        return {"long": initial_cache(batch, wide, self.config.l_max, dtype, self.D), "filters": filters.astype(dtype),
                "at": zeros((), "int32", like=self.D)}

    def _copied(self, x: EmberTensor) -> EmberTensor:
        return x if self.config.copies == 1 else concat([x] * self.config.copies, axis=1)

    def _output(self, y: EmberTensor) -> EmberTensor:
        a, b = split(self.out_proj(ACTIVATIONS[self.config.activation](y)), 2, axis=-1)
        return a * sigmoid(b)
