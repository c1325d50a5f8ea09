"""Loss and gradients of a model as one pure function of parameters, buffers, key and batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ember_ml import autodiff
from ember_ml.nn.module import Module
from ember_ml.nn.scope import training
from ember_ml.tensor import EmberTensor


class StepOutput(NamedTuple):
    """What a training forward pass gives besides its gradients.

    loss: scalar, auxiliary losses included. metrics: scalars by name. buffers: all buffers after the step, by name.
    """

    loss: EmberTensor
    metrics: dict[str, EmberTensor]
    buffers: dict[str, EmberTensor]


def loss_function(model: Module, loss: Callable) -> Callable:
    """`run(params, buffers, key, *batch) -> (total, (metrics, buffers))`: the pure form of a training forward pass.

    Args:
        model: its structure and frozen parameters are constants of the function.
        loss: `loss(model, *batch)` returning a scalar.
    """
    def run(params, buffers, key, *batch):
        with model.using({**params, **buffers}), training(key) as scope:
            total = loss(model, *batch)
        metrics = {"loss": total, **scope.metrics, **{f"loss/{k}": v for k, v in scope.losses.items()}}
        for extra in scope.losses.values():
            total = total + extra
        places = {(id(owner), attr): name for name, owner, attr in model.entries()}
        after = {**buffers, **{places[place]: value for place, value in scope.updates.items()}}
        stop = autodiff.stop_gradient
        return total, (stop(metrics), stop(after))
    return run


def value_and_grad(model: Module, loss: Callable, compile: bool = False) -> Callable:
    """A function `run(params, buffers, key, *batch) -> (StepOutput, gradients)`.

    Args:
        model: a module; `params` are its trainable parameters by name, `buffers` its buffers.
        loss: `loss(model, *batch)` returning a scalar; it may call the model as often as it likes.
        compile: compile the loss (for engines whose `runtime.compiles` is "loss"; others compile the whole step).

    The gradients are a dict like `params`. Nothing in the model changes.
    """
    pure = loss_function(model, loss)
    both = autodiff.value_and_grad(autodiff.compile(pure) if compile else pure, has_aux=True)

    def run(params, buffers, key, *batch):
        (total, (metrics, after)), grads = both(params, buffers, key, *batch)
        return StepOutput(total, metrics, after), grads
    return run
