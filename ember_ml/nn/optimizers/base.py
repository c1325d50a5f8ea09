"""What all optimisers share: pure updates of flat trees of parameters, schedules of the rate, clipping."""

from __future__ import annotations

from ember_ml.nn.optimizers.schedules import Schedule
from ember_ml.ops import creation, minimum, sqrt, square
from ember_ml.tensor import EmberTensor
from ember_ml.tensor.common import dtypes as dt

Params = dict[str, EmberTensor]


class Optimizer:
    """`state = opt.init(params)`, then `params, state = opt.update(params, grads, state)`; nothing is changed in place.

    `state["step"]` counts the updates done, as an int32 scalar tensor, so that a compiled step needs no retrace.
    """

    Config: type

    def __init__(self, config):
        self.config = config

    def init(self, params: Params) -> dict:
        """The state before the first update."""
        like = next(iter(params.values()))
        return {"step": creation.zeros((), dt.int32, like=like), **self.slots(params)}

    def slots(self, params: Params) -> dict[str, Params]:
        """The optimiser's own tensors per parameter."""
        raise NotImplementedError

    def rate(self, step: EmberTensor) -> EmberTensor:
        """Learning rate of the update number `step` (from 0), float32 scalar."""
        rate = self.config.rate
        return rate(step) if isinstance(rate, Schedule) else creation.full((), float(rate), like=step)

    def update(self, params: Params, grads: Params, state: dict) -> tuple[Params, dict]:
        """Parameters and state after one update with these gradients. Raises KeyError if the names differ."""
        raise NotImplementedError


def clip_by_global_norm(grads: Params, limit: float) -> tuple[Params, EmberTensor]:
    """(gradients scaled so that their joint Euclidean norm is at most `limit`, the norm before).

    Source: Pascanu et al. 2013, On the difficulty of training recurrent neural networks.
    """
    total = None
    for g in grads.values():
        wide = g.astype(dt.promote(g.dtype, dt.float32))
        part = square(wide).sum() if g.dtype.kind != "complex" else (g * g.conj()).real().sum()
        total = part if total is None else total + part
    norm = sqrt(total)
    factor = minimum(limit / (norm + 1e-12), 1.0)
    return {name: g * factor.astype(g.dtype) for name, g in grads.items()}, norm
