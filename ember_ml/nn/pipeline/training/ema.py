"""The exponential moving average of the parameters, which often predicts better than the parameters themselves."""

from __future__ import annotations

from ember_ml.ops import minimum
from ember_ml.tensor import EmberTensor
from ember_ml.tensor.common import dtypes as dt


def moving_average(average: dict[str, EmberTensor], params: dict[str, EmberTensor], done: EmberTensor,
                   decay: float) -> dict[str, EmberTensor]:
    """average <- d average + (1 - d) params,  d = min(decay, (1 + done) / (10 + done)).

    The smaller d of the first updates lets go of the initial values.

    Args:
        average, params: by name. done: updates done before this one, an int32 scalar. decay: such as 0.999.

    Source: Polyak and Juditsky 1992, Acceleration of Stochastic Approximation by Averaging; the rise of d as in TensorFlow's
    ExponentialMovingAverage.
    """
    n = done.astype(dt.float32)
    share = 1.0 - minimum((n + 1.0) / (n + 10.0), decay)
    return {name: a + (params[name] - a) * share.astype(a.dtype) for name, a in average.items()}
