"""Loss and gradients of a model as one pure function of parameters, buffers, key and batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ember_ml import autodiff
from ember_ml.errors import ShapeError, WeightsError
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


def loss_function(model: Module, loss: Callable, precision: str | None = None, recompute: bool = False) -> Callable:
    """`run(params, buffers, key, *batch) -> (total, (metrics, buffers))`: the pure form of a training forward pass.

    Args:
        model: its structure and frozen parameters are constants of the function.
        loss: `loss(model, *batch)` returning a scalar.
        precision: dtype to compute in. Parameters and the first array of the batch, the inputs, are cast to it inside the function, so
            that gradients come back in the parameters' own dtype (Micikevicius et al. 2018, Mixed Precision Training). None: as they are.
        recompute: keep only each block's input for the gradient, see `ember_ml.nn.recompute`.
    """
    def run(params, buffers, key, *batch):
        inside = {**params, **buffers}
        if precision is not None:
            inside |= {k: _cast(v, precision) for k, v in {**model.parameters(), **params}.items()}
            batch = tuple(_cast(a, precision) if i == 0 else a for i, a in enumerate(batch))
        with model.using(inside), training(key, recompute) as scope:
            total = loss(model, *batch)
        named = scope.updates or any(not isinstance(k, str) for k in scope.metrics)
        tensors = model.places() if named else {}
        places = {(id(owner), attr): name for name, where in tensors.items() for owner, attr in where}
        owners = {id(where[0][0]): name.rpartition(".")[0] for name, where in tensors.items()}
        metrics = {"loss": total, **{_metric_name(k, owners): v for k, v in scope.metrics.items()},
                   **{f"loss/{k}": v for k, v in scope.losses.items()}}
        for extra in scope.losses.values():
            total = total + extra
        after = {**buffers, **_updates(scope.updates, places, buffers)}
        stop = autodiff.stop_gradient
        return total, (stop(metrics), stop(after))
    return run


def _cast(x: EmberTensor, precision: str) -> EmberTensor:
    return x.astype(precision) if x.dtype.kind == "float" else x


def _updates(updates: dict, places: dict, buffers: dict) -> dict[str, EmberTensor]:
    """New values of buffers by name, checked, since a buffer that changes its form would break a compiled step."""
    named = {}
    for place, value in updates.items():
        name = places.get(place)
        if name not in buffers:
            raise WeightsError(f"update_buffer: expected a buffer of the model, got {place[1]!r}"
                               + (f", its parameter {name}" if name else ", of a module outside it"))
        old = buffers[name]
        if value.shape != old.shape or value.dtype is not old.dtype:
            raise ShapeError(f"update_buffer: expected {name} of {old.dtype}{list(old.shape)}, "
                             f"got {value.dtype}{list(value.shape)}")
        named[name] = value
    return named


def _metric_name(key: str | tuple[int, str], owners: dict[int, str]) -> str:
    if isinstance(key, str):
        return key
    return f"{owners.get(key[0], '')}.{key[1]}".lstrip(".")


def value_and_grad(model: Module, loss: Callable, compile: bool = False, precision: str | None = None,
                   recompute: bool = False) -> Callable:
    """A function `run(params, buffers, key, *batch) -> (StepOutput, gradients)`.

    Args:
        model: a module; `params` are its trainable parameters by name, `buffers` its buffers.
        loss: `loss(model, *batch)` returning a scalar; it may call the model as often as it likes.
        precision, recompute: see `loss_function`.
        compile: compile the loss (for engines whose `runtime.compiles` is "loss"; others compile the whole step).

    The gradients are a dict like `params`. Nothing in the model changes.
    """
    if not isinstance(model, Module) or not callable(loss):
        raise TypeError(f"value_and_grad: expected a module and a function loss(model, *batch), got {type(model).__name__} and "
                        f"{type(loss).__name__}; of functions of tensors em.value_and_grad(fn) takes the gradient")
    pure = loss_function(model, loss, precision, recompute)
    both = autodiff.value_and_grad(autodiff.compile(pure) if compile else pure, has_aux=True)

    def run(params, buffers, key, *batch):
        (total, (metrics, after)), grads = both(params, buffers, key, *batch)
        return StepOutput(total, metrics, after), grads
    return run
