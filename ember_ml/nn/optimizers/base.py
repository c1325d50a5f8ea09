"""What all optimisers share: pure updates of flat trees of parameters, schedules of the rate, clipping."""

from __future__ import annotations

import math

from ember_ml.errors import ConfigError
from ember_ml.nn.optimizers.schedules import Schedule
from ember_ml.ops import creation
from ember_ml.ops.optimizer import clip_norm
from ember_ml.registry.config import missing_config
from ember_ml.tensor import EmberTensor
from ember_ml.tensor.common import dtypes as dt

Params = dict[str, EmberTensor]


class Optimizer:
    """`state = opt.init(params)`, then `params, state = opt.update(params, grads, state)`; no value is changed that is still in use.

    `state["step"]` counts the updates done, as an int32 scalar tensor, so that a compiled step needs no retrace.
    """

    Config: type

    def __init__(self, config):
        if not isinstance(config, self.Config):
            raise missing_config(type(self), repr(config))
        self.config = config

    def init(self, params: Params) -> dict:
        """The state before the first update."""
        if not isinstance(params, dict) or not params:
            raise ConfigError(f"{type(self).__name__}.init: expected parameters by name, at least one, as model.parameters(trainable=True) gives; "
                              f"received {'none' if params == {} else type(params).__name__}")
        like = next(iter(params.values()))
        return {"step": creation.zeros((), dt.int32, like=like), **self.slots(params)}

    def slots(self, params: Params) -> dict[str, Params]:
        """The optimiser's own tensors per parameter."""
        raise NotImplementedError

    def rate(self, step: EmberTensor) -> EmberTensor:
        """Learning rate of the update number `step` (from 0), float32 scalar."""
        rate = self.config.rate
        return rate(step) if isinstance(rate, Schedule) else creation.full((), float(rate), like=step)

    def update(self, params: Params, grads: Params, state: dict, donate: bool = False) -> tuple[Params, dict]:
        """Parameters and state after one update with these gradients. Raises KeyError if the names differ.

        donate: params and state are given away: their tensors are not used afterwards, so that an engine may write the new ones in their
        place (torch does). Without it nothing is changed, and what comes back is new. An optimiser of one's own may do without it.
        """
        raise NotImplementedError


def clip_by_global_norm(grads: Params, limit: float) -> tuple[Params, EmberTensor]:
    """(gradients scaled so that their joint Euclidean norm is at most `limit`, the norm before). inf leaves them alone.

    Source: Pascanu et al. 2013, On the difficulty of training recurrent neural networks.
    """
    *clipped, norm = clip_norm(*grads.values(), limit=limit)
    return grads if limit == math.inf else dict(zip(grads, clipped)), norm
