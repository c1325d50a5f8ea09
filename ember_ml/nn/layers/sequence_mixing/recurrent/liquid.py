"""What the liquid layers have in common: a state of neurons, times between positions, and the memory beside them."""

from __future__ import annotations

from ember_ml.errors import ShapeError
from ember_ml.nn import initializers
from ember_ml.nn.layers.sequence_mixing.base import SequenceMixer, state_dtype
from ember_ml.nn.module import Module
from ember_ml.ops import broadcast_to, concat, expand_dims, linear, ones, random, zeros
from ember_ml.ops.recurrence import Memory
from ember_ml.tensor import EmberTensor


class MixedMemory(Module):
    """The LSTM that steps before the neurons: see `ops.recurrence.mixed_memory`.

    Args:
        d_input: channels. units: neurons. key: random key of the initial weights; the forget gate's bias is 1 larger.

    Parameters: weight_ih (4 units, d_input), weight_hh (4 units, units), bias (4 units,), gates i, f, g, o.
    """

    def __init__(self, d_input: int, units: int, key: EmberTensor):
        first, second, third = random.split(key, 3)
        self.weight_ih = initializers.glorot_uniform(first, (4 * units, d_input))
        self.weight_hh = initializers.fan_in_uniform(second, (4 * units, units))
        small = initializers.uniform(third, (4 * units,), 0.1)
        self.bias = small + concat([zeros((units,), like=small), ones((units,), like=small), zeros((2 * units,), like=small)])

    def beside(self, x: EmberTensor, c: EmberTensor) -> Memory:
        """For the inputs x (B, L, d_input) and the state c (B, units), as the ops take it."""
        return Memory(linear(x, self.weight_ih, self.bias), self.weight_hh, c)


class Liquid(SequenceMixer):
    """Base of layers whose neurons follow an equation in time. State: h (B, units), and c of the same shape with mixed memory.

    Positions are one unit of time apart unless `elapsed` says otherwise. A derived class sets `units`, and `memory`, a MixedMemory or None.
    """

    cannot_pack = None

    def run(self, x: EmberTensor, h: EmberTensor, elapsed: EmberTensor | None, memory: Memory | None) -> tuple:
        """The op: (y, h) and, with a memory, its c."""
        raise NotImplementedError

    def forward(self, x: EmberTensor, state=None, elapsed: EmberTensor | None = None):
        """(B, L, d_input) to (B, L, outputs).

        Args:
            elapsed: (B, L), or (L,) for all sequences: the time that has passed since the position before, not negative.
        """
        start = self.initial_state(x.shape[0], x.dtype) if state is None else state
        if elapsed is not None:
            if elapsed.shape not in (x.shape[:2], x.shape[1:2]):
                raise ShapeError(f"{type(self).__name__}: expected elapsed of shape (batch, length) = {x.shape[:2]} or (length,), "
                                 f"got {elapsed.shape}")
            elapsed = expand_dims(broadcast_to(elapsed, x.shape[:2]), -1)
        y, *after = self.run(x, start["h"], elapsed, None if self.memory is None else self.memory.beside(x, start["c"]))
        return y, None if state is None else dict(zip(start, after))

    def step(self, x: EmberTensor, state, elapsed: EmberTensor | None = None):
        """One position, (B, d_input); elapsed (B,)."""
        y, state = self.forward(expand_dims(x, 1), state, None if elapsed is None else expand_dims(elapsed, 1))
        return y[:, 0], state

    def initial_state(self, batch: int, dtype="float32"):
        """Zeros, in float32 at least."""
        some = next(iter(self.parameters().values()))
        parts = ("h",) if self.memory is None else ("h", "c")
        return {part: zeros((batch, self.units), state_dtype(dtype), like=some) for part in parts}
