"""Cells whose update is elementwise: what `gated_scan` walks over time.

A cell takes its gates before their nonlinearities, z = x_t + R h_{t-1}, and the old state, and gives the new state; its first part is the
hidden state h, which is the output and what R multiplies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ember_ml.ops.activation import relu, sigmoid, softplus
from ember_ml.ops.elementwise import exp, maximum, minimum, tanh, where
from ember_ml.tensor import EmberTensor

Parts = tuple[EmberTensor, ...]


@dataclass(frozen=True)
class GatedCell:
    """An elementwise cell.

    Args:
        name: for messages.
        gates: how many values x brings for each hidden channel.
        recurrent: how many of them, the first ones, R h is added to.
        states: parts of the state.
        update: `(gates, state) -> state`, tuples of tensors of one shape; elementwise, since its derivative is taken as
            one number for each pair of an output and an input.
    """

    name: str
    gates: int
    recurrent: int
    states: int
    update: Callable[[Parts, Parts], Parts]


def _lstm(gates: Parts, state: Parts) -> Parts:
    i, f, g, o = gates
    _, c = state
    c = sigmoid(f) * c + sigmoid(i) * tanh(g)
    return sigmoid(o) * tanh(c), c


def _gru(gates: Parts, state: Parts) -> Parts:
    r, z, inner, n = gates
    (h,) = state
    n = tanh(n + sigmoid(r) * inner)
    return (n + sigmoid(z) * (h - n),)


def _slstm(gates: Parts, state: Parts) -> Parts:
    i, f, z, o = gates
    _, c, n, m = state
    kept = m - softplus(-f)                              # log of the forget gate, times e^m
    largest = where(n == 0.0, i, maximum(i, kept))
    forget, write = minimum(exp(kept - largest), 1.0), exp(i - largest)
    c, n = forget * c + write * tanh(z), forget * n + write
    return sigmoid(o) * c / n, c, n, largest


#: h = tanh(z) and h = relu(z). Elman 1990
RNN_TANH = GatedCell("rnn", 1, 1, 1, lambda gates, _state: (tanh(gates[0]),))
RNN_RELU = GatedCell("rnn", 1, 1, 1, lambda gates, _state: (relu(gates[0]),))

#: gates i, f, g, o; state h, c. c = sig(f) c + sig(i) tanh(g); h = sig(o) tanh(c). Hochreiter and Schmidhuber 1997; Gers 2000
LSTM = GatedCell("lstm", 4, 4, 2, _lstm)

#: gates r, z, R h's part of n, x's part of n; state h. h = (1 - sig(z)) tanh(n + sig(r) R h) + sig(z) h. Cho et al. 2014
GRU = GatedCell("gru", 4, 3, 1, _gru)

#: gates i, f, z, o; state h, c, n, m: exponential input gate with normaliser and stabiliser. Beck et al. 2024, xLSTM, eq. 8 to 17
SLSTM = GatedCell("slstm", 4, 4, 4, _slstm)
