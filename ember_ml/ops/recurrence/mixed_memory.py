"""Mixed memory: an LSTM step before each step of a continuous-time cell, so that what is to be kept does not pass through its equation.

    i, f, g, o = W x_t + b + R h_{t-1};  c_t = sig(f) c_{t-1} + sig(i) tanh(g);  h = sig(o) tanh(c_t);  h_t = cell(x_t, h)

Source: Lechner and Hasani 2020, Learning Long-Term Dependencies in Irregularly-Sampled Time Series, section 4.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ember_ml.errors import ShapeError
from ember_ml.ops.linear import matmul
from ember_ml.ops.recurrence.cells import LSTM
from ember_ml.ops.recurrence.layered_scan import Stage
from ember_ml.ops.shape import split, swap_axes
from ember_ml.tensor import EmberTensor


@dataclass(frozen=True)
class Memory:
    """The LSTM beside a cell of N neurons.

    Args:
        gates: (B, L, 4 N), W x + b at all positions: i, f, g, o. weight_hh: (4 N, N), R.
        c: (B, N), what is kept before the first position.
    """

    gates: EmberTensor
    weight_hh: EmberTensor
    c: EmberTensor

    def check(self, name: str, batch: int, length: int, neurons: int):
        """Raises ShapeError, with the op's name, for a tensor that does not fit."""
        for what, shape in (("gates", (batch, length, 4 * neurons)), ("weight_hh", (4 * neurons, neurons)), ("c", (batch, neurons))):
            if getattr(self, what).shape != shape:
                raise ShapeError(f"{name}: expected the memory's {what} of shape {shape}, got {getattr(self, what).shape}")

    def matrix(self, dtype) -> EmberTensor:
        """R as `with_memory` reads it, (N, 4 N)."""
        return swap_axes(self.weight_hh.astype(dtype))


def _update(gates, memory, _given):
    return LSTM.update(gates, (None, *memory))


#: that step as the first stage of a layered scan
MEMORY = Stage(4, 1, _update)


def with_memory(step: Callable) -> Callable:
    """The step of a cell, `step((h,), xs, weights) -> ((h,), y)`, after an LSTM's on the state (h, c).

    xs begins with the memory's gates, weights with `Memory.matrix`.
    """
    def run(state, xs, weights):
        (h, c), (gates, *xs), (matrix, *weights) = state, xs, weights
        h, c = LSTM.update(split(gates + matmul(h, matrix), 4, axis=-1), (h, c))
        (h,), y = step((h,), xs, weights)
        return (h, c), y
    return run
