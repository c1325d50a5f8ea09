"""What kinds of experts have in common."""

from __future__ import annotations

from ember_ml.nn.module import Module
from ember_ml.nn.moe.routing import Routing
from ember_ml.ops import arange, expand_dims, minimum, moe_combine, multiply, reshape, take
from ember_ml.ops import sum as total
from ember_ml.registry import Registry
from ember_ml.tensor import EmberTensor

#: kinds of experts by name; other names are those of layers
experts = Registry("expert", "ember_ml.nn.moe.experts")


class Experts(Module):
    """All experts of a layer. Subclasses compute `forward`, and the others faster where they can.

    Attributes: d_output, channels that come out; mixes_sequence, whether an expert looks at more than one position.
    """

    mixes_sequence = False
    d_output: int

    def forward(self, x: EmberTensor) -> EmberTensor:
        """Every expert on everything: (..., d_input) to (E, ..., d_output)."""
        raise NotImplementedError

    def slots(self, x: EmberTensor, routing: Routing) -> EmberTensor:
        """What each slot's expert makes of its token, without weight: x (T, d_input) to (T, K, d_output). A slot without an
        expert has whatever the last expert gives."""
        rows, where_to = picked(self.forward(x), routing)
        return take(rows, where_to)

    def mixed(self, x: EmberTensor, routing: Routing) -> EmberTensor:
        """The weighted sum over slots: x (T, d_input) to (T, d_output)."""
        return weighted_sum(self.forward(x), routing)


def weighted_sum(y: EmberTensor, routing: Routing) -> EmberTensor:
    """(N, d): the sum over slots of y (E, N, d), every expert's output on every item, summed in the weights' dtype."""
    rows, where_to = picked(y, routing)
    if routing.complete:
        return moe_combine(rows, where_to, routing.weights)
    chosen = take(rows, where_to).astype(routing.weights.dtype)     # a row of the last expert may have several slots: nobody's and its own
    return total(multiply(chosen, expand_dims(routing.weights, -1)), axis=1).astype(y.dtype)


def picked(y: EmberTensor, routing: Routing) -> tuple[EmberTensor, EmberTensor]:
    """(rows of all experts (E N, ...), row of each slot (N, K)) from y (E, N, ...), every expert's output on every item."""
    count, items = y.shape[0], y.shape[1]
    ids = routing.ids if routing.complete else minimum(routing.ids, count - 1)
    return reshape(y, (count * items, *y.shape[2:])), ids * items + expand_dims(arange(items, like=ids), 1)
