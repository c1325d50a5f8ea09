"""What the layers with torch's recurrent weights have in common: their config, parameters and state."""

from __future__ import annotations

from ember_ml.nn import initializers
from ember_ml.nn.layers.sequence_mixing.base import SequenceMixer, state_dtype
from ember_ml.ops import random, zeros
from ember_ml.registry import Size, config
from ember_ml.tensor import EmberTensor


@config
class RecurrentConfig:
    """d_input: channels in. d_hidden: channels of state and output, None for d_input. bias: add them."""

    d_input: Size
    d_hidden: Size | None = None
    bias: bool = True


class Recurrent(SequenceMixer):
    """Base: weight_ih (gates d_hidden, d_input), weight_hh (gates d_hidden, d_hidden) and biases, uniform in +-1/sqrt(d_hidden).

    Args:
        config: see RecurrentConfig. key: random key of the initial weights.
    """

    cannot_pack = None

    #: of a derived class: gates, the names of its biases with their length in gates, and of the state's parts
    gates: int
    biases: dict[str, int] = {}
    parts: tuple[str, ...] = ("h",)

    def __init__(self, config: RecurrentConfig, key: EmberTensor | None = None):
        self.config = config
        width = config.d_hidden or config.d_input
        keys = iter(random.split(key if key is not None else random.next_key(), 2 + len(self.biases)))
        self.weight_ih = initializers.fan_in_uniform(next(keys), (self.gates * width, config.d_input), width)
        self.weight_hh = initializers.fan_in_uniform(next(keys), (self.gates * width, width), width)
        for name, gates in self.biases.items():
            bias_key = next(keys)
            setattr(self, name, initializers.fan_in_uniform(bias_key, (gates * width,), width) if config.bias else None)

    def run(self, x: EmberTensor, *state: EmberTensor) -> tuple:
        """The op: (y, *last state)."""
        raise NotImplementedError

    def forward(self, x: EmberTensor, state=None):
        """(B, L, d_input) to (B, L, d_hidden)."""
        y, *after = self.run(x, *([None] * len(self.parts) if state is None else [state[name] for name in self.parts]))
        return y, None if state is None else dict(zip(self.parts, after))

    def initial_state(self, batch: int, dtype="float32"):
        """Zeros, in float32 at least."""
        return {name: zeros((batch, self.weight_hh.shape[1]), state_dtype(dtype), like=self.weight_hh) for name in self.parts}
